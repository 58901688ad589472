"""The calls of private rounds: answers that are no view of a round, and streams whose chunks do not fit."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from pluralllm.client.link.round_calls import RoundCalls
from pluralllm.client.link.transport import Transport as RealTransport
from pluralllm.common.errors.tree import AnswerInvalid
from pluralllm.common.words.ids import ClientId, RoundNumber, RunId, TaskId
from pluralllm.v1 import federation_pb2 as pb

RUN, ONE = RunId("r"), RoundNumber(1)


class Transport:
    """A transport with one answer, and one stream of chunks."""

    def __init__(self, answer: Any = None, chunks: tuple[tuple[int, bytes], ...] = ()) -> None:
        self.answer, self.chunks = answer, chunks
        self.calls: list[tuple[str, Any]] = []

    async def call(self, method: str, request: Any, deadline_s: float | None = None) -> Any:
        self.calls.append((method, request))
        return self.answer

    async def chunks_of(self, method: str, request: Any, deadline_s: float) -> AsyncIterator[tuple[int, bytes]]:
        self.calls.append((method, request))
        for chunk in self.chunks:
            yield chunk


async def test_an_answer_that_cannot_be_a_view_of_a_round_breaks_the_protocol() -> None:
    transport = Transport(pb.GetRoundStepResponse(phase=1, terms=pb.RoundTerms(spec_sha256=b"short")))
    with pytest.raises(AnswerInvalid, match="GetRoundStep"):
        await RoundCalls(transport).view(TaskId("t"), 1)
    assert transport.calls == [("GetRoundStep", pb.GetRoundStepRequest(task="t", phase=1))]


async def test_a_file_is_put_together_from_its_chunks() -> None:
    transport = Transport(chunks=((0, b"ab"), (1, b"c")))
    assert await RoundCalls(transport).masked(RUN, ONE, "ann", 3) == b"abc"
    assert transport.calls == [("GetMaskedChunks", pb.GetMaskedChunksRequest(run="r", round=1, member="ann"))]
    assert await RoundCalls(Transport(chunks=((0, b"abc"),))).transcript(RUN, ONE, 3) == b"abc"


@pytest.mark.parametrize("chunks", [((1, b"a"),), ((0, b"a"), (0, b"b")), ((0, b"ab"), (1, b"cd"))])
async def test_chunks_out_of_order_or_too_many_break_the_protocol(chunks: tuple[tuple[int, bytes], ...]) -> None:
    with pytest.raises(AnswerInvalid):
        await RoundCalls(Transport(chunks=chunks)).masked(RUN, ONE, "ann", 3)


class Stub:
    """A coordinator that notes what it is asked."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    async def Poll(self, request: Any, **_: Any) -> pb.PollResponse:  # noqa: N802 - its name in the service
        self.requests.append(request)
        return pb.PollResponse(wait=pb.Wait(reason="no run"))


async def test_a_poll_carries_the_step_that_the_client_knows() -> None:
    transport, stub = RealTransport.in_plain_text("127.0.0.1:1", ClientId("ann")), Stub()
    await transport._connection.close()
    transport._connection.stub = stub
    await transport.poll(TaskId("t"), [], 3)
    assert (stub.requests[0].held_task, stub.requests[0].held_phase) == ("t", 3)
