"""The log of an unexpected exception names the place, and never the values."""

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Literal

import grpc
import pytest
import structlog

from pluralllm.common.process.logs import configure_logs
from pluralllm.server.process.fail_stop import FailStop
from pluralllm.server.rpc import boundary
from pluralllm.server.rpc.boundary import Boundary
from pluralllm.v1 import enrolment_pb2 as pb

CANARY = "canary-" + "k" * 36
JOIN = "/pluralllm.v1.EnrolmentService/Join"


class OpenDoor:
    """A door that admits every caller."""

    @contextlib.asynccontextmanager
    async def enter(self, method: str, context: Any, request: object) -> AsyncIterator[Callable[[], None]]:
        yield lambda: None


class Call:
    """The few parts of a call's context that an abort uses."""

    answer = ""

    async def abort(self, code: grpc.StatusCode, details: str, trailing_metadata: Any) -> None:
        self.answer = f"{code} {details} {trailing_metadata}"


class Details:
    method = JOIN


async def fails(request: pb.JoinRequest, context: Any) -> None:
    token = request.token
    raise KeyError(len(token))


@pytest.fixture
def log_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Gives the boundary a fresh logger, because structlog keeps the configuration of a logger's first use."""
    monkeypatch.setattr(boundary, "log", structlog.get_logger())
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.usefixtures("log_of_its_own")
async def test_an_incident_is_logged_with_its_place_and_without_what_the_caller_sent(
    form: Literal["json", "console"], capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs(form=form)

    async def continuation(details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(fails)

    handler = await Boundary(OpenDoor(), FailStop()).intercept_service(continuation, Details())  # type: ignore[arg-type]
    call = Call()
    with pytest.raises(KeyError):
        await handler.unary_unary(pb.JoinRequest(name="org-a", token=CANARY), call)
    logged = capsys.readouterr().err
    assert "rpc.failed" in logged
    assert "KeyError" in logged
    assert "in fails" in logged or '"name": "fails"' in logged, "the place is what a maintainer needs"
    assert CANARY[:12] not in logged + call.answer
    if form == "json":
        assert json.loads(logged.splitlines()[-1])["incident"] in call.answer


@pytest.mark.parametrize(("refused", "is_coloured"), [(False, True), (True, False)])
@pytest.mark.usefixtures("log_of_its_own")
def test_lines_for_people_are_coloured_unless_they_refuse_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, refused: bool, is_coloured: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    if refused:
        monkeypatch.setenv("NO_COLOR", "1")
    configure_logs(form="console")
    structlog.get_logger().info("something.happened")
    assert ("\x1b[" in capsys.readouterr().err) == is_coloured


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.usefixtures("log_of_its_own")
def test_texts_of_an_exception_reach_a_log_as_escapes(
    form: Literal["json", "console"], capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs(form=form)
    structlog.get_logger().error("task.broken", exc_info=ValueError("\x1b[2J\u202e"))
    shown = capsys.readouterr().err
    assert "u202e" in shown
    assert "ValueError" in shown
    assert not set("\x1b\u202e") & set(shown)


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.usefixtures("log_of_its_own")
def test_texts_of_another_party_reach_a_log_line_as_escapes(
    form: Literal["json", "console"], capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs(form=form)
    structlog.get_logger().info("client.waiting", reason="\x1b[2J\u202e", names=["a\x07"], facts={"b\x08": "c\x7f"})
    line = capsys.readouterr().err.removesuffix("\n")
    assert "u202e" in line
    assert not set("\x1b\u202e\x07\x08\x7f") & set(line)
