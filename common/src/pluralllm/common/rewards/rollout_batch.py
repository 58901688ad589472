"""Batches of rollouts as JSON: prompts with candidate answers, which a trainer sends to the groups that score them.

The format is [["prompt", ["candidate", "candidate"], [3, 1]], ...]. The numbers 3 and 1 say how often each candidate was
sampled; the entry of a prompt may leave the numbers out. The JSON has no spaces, so that equal batches always have the same
bytes and the same digest.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pluralllm.common.errors.tree import InvalidArgument, OverLimit
from pluralllm.common.words.questions import Question

MAX_BYTES = 3 * 1024 * 1024  # of a batch; with its envelope it fits one gRPC message


@dataclass(frozen=True, slots=True, repr=False)
class Candidates:
    """One prompt, its candidate answers that the groups score, and how often each candidate was sampled."""

    prompt: str
    options: tuple[str, ...]  # the candidates: at least 2, all different
    counts: tuple[float, ...] = ()  # how often each candidate was sampled; empty: all equally often

    def to_question(self) -> Question:
        """Returns the prompt as a question and the candidates as its options.

        All options have the same share, because nobody has answered the question.
        """
        return Question(self.prompt, self.options, tuple(1 / len(self.options) for _ in self.options), is_ordered=False)


def write_rollouts(batch: Iterable[Candidates]) -> bytes:
    """Returns a batch of rollouts as JSON bytes (UTF-8, no spaces)."""
    rows = [
        [candidates.prompt, list(candidates.options), *([list(candidates.counts)] if candidates.counts else [])]
        for candidates in batch
    ]
    return json.dumps(rows, separators=(",", ":"), ensure_ascii=False).encode()


def read_rollouts(raw: bytes, max_candidates: int) -> tuple[Candidates, ...]:
    """Reads a batch of rollouts from JSON that comes from an untrusted sender.

    Raises InvalidArgument if the JSON is not a valid batch; the error names the first bad entry (a prompt with its
    candidates). Raises OverLimit if the JSON has more than MAX_BYTES bytes or more than `max_candidates` candidates.
    """
    if len(raw) > MAX_BYTES:
        raise OverLimit(what="bytes of rollouts", got=len(raw), limit=MAX_BYTES)
    try:
        rows = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(field="rollouts", problem="are not JSON") from error
    if not isinstance(rows, list) or not rows:
        raise InvalidArgument(field="rollouts", problem="must be a list of at least one [prompt, [candidates]]")
    batch = tuple(_row(number, row) for number, row in enumerate(rows))
    if (count := count_candidates(batch)) > max_candidates:
        raise OverLimit(what="candidates in a batch", got=count, limit=max_candidates)
    return batch


def sampled(batch: Sequence[Candidates]) -> list[float]:
    """Returns how often each candidate of a batch was sampled, in the order of the batch.

    The number is 1 for every candidate of a prompt that has no counts.
    """
    return [count for candidates in batch for count in candidates.counts or (1.0,) * len(candidates.options)]


def count_candidates(batch: Sequence[Candidates]) -> int:
    """Returns the number of candidates in a batch, over all its prompts."""
    return sum(len(candidates.options) for candidates in batch)


def _row(number: int, row: object) -> Candidates:
    if not (isinstance(row, list) and len(row) in (2, 3) and isinstance(row[0], str) and isinstance(row[1], list)):
        raise InvalidArgument(field=f"rollouts[{number}]", problem="is not [prompt, [candidates]] or with [counts]")
    prompt, options, counts = row if len(row) == 3 else (*row, [])
    texts = [option for option in options if isinstance(option, str) and option.strip()]
    if not prompt.strip() or len(texts) < len(options) or len(texts) < 2 or len(set(texts)) < len(texts):
        problem = "needs a prompt and at least 2 candidates, each with a text of its own"
        raise InvalidArgument(field=f"rollouts[{number}]", problem=problem)
    if len(row) == 3 and not _are_counts(counts, len(texts)):
        problem = "needs one count of 0 or more for each candidate, not all 0"
        raise InvalidArgument(field=f"rollouts[{number}]", problem=problem)
    return Candidates(prompt, tuple(texts), tuple(float(count) for count in counts))


def _are_counts(value: object, length: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == length
        and all(isinstance(count, int | float) and 0 <= count <= 1e9 for count in value)  # NaN is within no bounds
        and sum(value) > 0
    )
