"""The call that compares the questions of a run's members."""

from collections.abc import Sequence
from typing import Any, Protocol

from pluralllm.common.words.ids import RunId
from pluralllm.common.words.question_digests import SharedQuestions
from pluralllm.v1 import federation_pb2 as pb


class Calls(Protocol):
    """The transport, as far as this module uses it."""

    async def call(self, method: str, request: Any, deadline_s: float | None = None) -> Any:
        """Makes a unary call and returns its checked answer."""


async def shared_questions(transport: Calls, run: RunId, digests: Sequence[int]) -> SharedQuestions:
    """Returns how many of the questions with these digests other members of a run have. digests: ascending, 64 bits each."""
    answer = await transport.call("CompareQuestions", pb.CompareQuestionsRequest(run=run, digests=digests))
    return SharedQuestions(answer.members, answer.shared, answer.compared)
