"""The calls of private rounds: the steps of an open round, and the files of a closed one."""

from collections.abc import AsyncIterator
from typing import Any, Protocol

import structlog

from pluralllm.client.link.transport import deadline_of, retries
from pluralllm.common.errors.membership import TooManyCalls
from pluralllm.common.errors.tree import (
    AnswerInvalid,
    InvalidArgument,
    NoAnswer,
    PluralError,
    RoundClosed,
    StorageFull,
)
from pluralllm.common.private_rounds.round_view import RoundView
from pluralllm.common.weights.pieces import transfer_s
from pluralllm.common.wire.round_steps import KEYS_PHASE, StepBody, step_request, view_of
from pluralllm.common.words.ids import RoundNumber, RunId, TaskId
from pluralllm.v1 import federation_pb2 as pb

STREAM_SETUP_S = 60.0
log = structlog.get_logger()


class Calls(Protocol):
    """The transport, as far as private rounds use it."""

    async def call(self, method: str, request: Any, deadline_s: float | None = None) -> Any:
        """Makes a unary call and returns its checked answer."""

    def chunks_of(self, method: str, request: Any, deadline_s: float) -> AsyncIterator[tuple[int, bytes]]:
        """Yields number and bytes of each chunk of a stream."""


class RoundCalls:
    """Makes the calls of private rounds. Each of them may be repeated, and is retried as the transport's other calls are."""

    def __init__(self, transport: Calls) -> None:
        self._transport = transport

    async def view(self, task: TaskId, phase: int) -> RoundView:
        """Returns the round as the coordinator shows it in a step.

        Raises WrongStep if the round is in another step; RoundClosed or LeaseLost if this client has no part in it any more;
        AnswerInvalid if the answer cannot be a view of a round.
        """
        request = pb.GetRoundStepRequest(task=task, phase=phase)
        async for attempt in retries(NoAnswer, TooManyCalls):
            with attempt:
                answer = await self._transport.call("GetRoundStep", request)
        try:
            return view_of(answer)
        except InvalidArgument as error:
            raise AnswerInvalid(call="GetRoundStep", field=error.field, problem=error.problem) from error

    async def is_closed(self, task: TaskId) -> bool:
        """Returns whether the coordinator says that a task's round is closed. Asks once; no answer is no closed round.

        A coordinator that has been overtaken, and does not know it yet, may not have heard of the round: then it is not closed.
        """
        try:
            await self._transport.call("GetRoundStep", pb.GetRoundStepRequest(task=task, phase=KEYS_PHASE))
        except RoundClosed as error:
            return error.current >= error.asked
        except PluralError as error:
            log.debug("private.round_kept", task=task, reason=str(error))
        return False

    async def put(self, task: TaskId, terms_sha256: bytes, message: StepBody) -> None:
        """Sends this client's message of a step; durable when the method returns. Raises the errors of `view`."""
        request = step_request(task, terms_sha256, message)
        deadline_s = deadline_of("PutRoundStep", request)
        async for attempt in retries(NoAnswer, StorageFull, TooManyCalls):
            with attempt:
                await self._transport.call("PutRoundStep", request, deadline_s)

    async def transcript(self, run: RunId, number: RoundNumber, most_bytes: int) -> bytes:
        """Returns the transcript of a closed private round. Raises NotFound if it is not kept; AnswerInvalid if too long."""
        return await self._whole("GetTranscript", pb.GetTranscriptRequest(run=run, round=number), most_bytes)

    async def masked(self, run: RunId, number: RoundNumber, member: str, size_bytes: int) -> bytes:
        """Returns one masked update of a closed private round. Raises NotFound if it is not kept; AnswerInvalid if longer."""
        request = pb.GetMaskedChunksRequest(run=run, round=number, member=member)
        return await self._whole("GetMaskedChunks", request, size_bytes)

    async def _whole(self, method: str, request: Any, most_bytes: int) -> bytes:
        """Returns the bytes of all chunks of a stream. The caller checks their hash."""
        content = bytearray()
        async for attempt in retries(NoAnswer, TooManyCalls):
            with attempt:
                content.clear()
                following = 0
                async for index, data in self._transport.chunks_of(
                    method, request, STREAM_SETUP_S + transfer_s(most_bytes)
                ):
                    if index != following or len(content) + len(data) > most_bytes:
                        raise AnswerInvalid(
                            call=method, field="index", problem="the chunks are out of order or too many"
                        )
                    content += data
                    following += 1
        return bytes(content)
