"""The enrolment port says what it is to whoever calls the main port's methods there; the main port leaves the word to gRPC."""

from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from pluralllm.common.errors.grpc_status import to_status
from pluralllm.common.errors.tree import WrongPort
from pluralllm.server.members.door import EnrolmentDoor
from pluralllm.server.process import instruments
from pluralllm.server.process.fail_stop import FailStop
from pluralllm.server.rpc.boundary import Boundary
from pluralllm.server.rpc.serving import of_the_main_port

HELLO = "/pluralllm.v1.FederationService/Hello"


class Call:
    """The context of one call, which keeps the status that ended it."""

    def __init__(self) -> None:
        self.answer: tuple[Any, ...] = ()

    async def abort(self, *answer: Any, trailing_metadata: Any) -> None:
        self.answer = (*answer, trailing_metadata)
        raise grpc.aio.AbortError


async def nobody(_: Any) -> None:
    return None


async def handler_for(method: str, boundary: Boundary) -> Any:
    return await boundary.intercept_service(nobody, SimpleNamespace(method=method))


@pytest.mark.parametrize(
    ("method", "shown"),
    [
        (HELLO, "does not answer Hello"),
        ("/a/" + "x" * 500, f"does not answer {'x' * 60}"),
        ("/a/\x1b[2J", "does not answer \\x1b[2J"),
    ],
)
async def test_the_enrolment_port_says_that_it_is_not_the_main_port(method: str, shown: str) -> None:
    handler, call = await handler_for(method, Boundary(EnrolmentDoor(), FailStop(), of_the_main_port)), Call()
    with pytest.raises(grpc.aio.AbortError):
        async for _ in handler.stream_stream(None, call):
            pass
    status = to_status(of_the_main_port(method))
    assert call.answer == (grpc.StatusCode.UNIMPLEMENTED, status.details, status.trailing_metadata)
    assert status.details.startswith(
        f"Wrong port: this address is not the coordinator's main port: it is the enrolment port, which {shown}."
    )


async def test_names_that_strangers_make_up_fill_no_metric() -> None:
    boundary = Boundary(EnrolmentDoor(), FailStop(), of_the_main_port)
    for number in range(3):
        handler = await handler_for(f"/made.up/Name{number}", boundary)
        with pytest.raises(grpc.aio.AbortError):
            async for _ in handler.stream_stream(None, Call()):
                pass
    names = {sample.labels.get("rpc") for metric in instruments.CALLS.collect() for sample in metric.samples}
    assert not {name for name in names if name is not None and name.startswith("Name")}
    assert "?" in names


async def test_an_unknown_method_of_the_main_port_has_grpcs_own_answer() -> None:
    assert await handler_for(HELLO, Boundary(EnrolmentDoor(), FailStop())) is None


def test_the_error_keeps_its_facts_on_the_way() -> None:
    error = of_the_main_port(HELLO)
    assert isinstance(error, WrongPort)
    assert (error.address, error.wanted) == ("this address", "main port")
