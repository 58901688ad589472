"""Rollouts on their way from a trainer to the groups that score them: prompts with their candidates, as JSON. Pure.

[["prompt", ["candidate", "candidate"], [3, 1]], ...]: how often each was sampled may be left out. No spaces, so that the same
batch has the same bytes, and the same digest.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pluralllm.common.errors.tree import InvalidArgument, OverLimit
from pluralllm.common.words.questions import Question

MAX_BYTES = 3 * 1024 * 1024  # of a batch: with its envelope it fits one message


@dataclass(frozen=True, slots=True, repr=False)
class Candidates:
    """One prompt, and what is to be told apart for it."""

    prompt: str
    options: tuple[str, ...]  # at least 2, each with a text of its own
    counts: tuple[float, ...] = ()  # how often each was sampled; empty: all alike

    def to_question(self) -> Question:
        """For a predictor; nobody has answered it."""
        return Question(self.prompt, self.options, tuple(1 / len(self.options) for _ in self.options))


def write_rollouts(batch: Iterable[Candidates]) -> bytes:
    rows = [[each.prompt, list(each.options), *([list(each.counts)] if each.counts else [])] for each in batch]
    return json.dumps(rows, separators=(",", ":"), ensure_ascii=False).encode()


def read_rollouts(raw: bytes, max_candidates: int) -> tuple[Candidates, ...]:
    """Raises InvalidArgument, naming the first row that is wrong, or OverLimit."""
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
    """How often each candidate was sampled, in order."""
    return [count for each in batch for count in each.counts or (1.0,) * len(each.options)]


def count_candidates(batch: Sequence[Candidates]) -> int:
    return sum(len(each.options) for each in batch)


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


def _are_counts(given: object, wanted: int) -> bool:
    return (
        isinstance(given, list)
        and len(given) == wanted
        and all(isinstance(each, int | float) and math.isfinite(each) and 0 <= each <= 1e9 for each in given)
        and sum(given) > 0
    )
