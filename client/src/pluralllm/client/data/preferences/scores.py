"""Turns scores of candidates into shares, by a meaning that the partner has named. A score by itself is no share of votes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pluralllm.client.data.preferences.ballots import top_of
from pluralllm.common.errors.tree import InvalidArgument

UNIT_FOLLOWS = ":"  # as in softmax:0.5
FORMS = "softmax, softmax:TEMPERATURE, best-of or win-rate"
NOT_SAID = f"scores are no shares of votes; say what they mean: --scores {FORMS}, and --lower-is-better for penalties"


@dataclass(frozen=True, slots=True)
class ScoreMeaning:
    """The way from scores to shares."""

    kind: str  # softmax, best-of or win-rate
    temperature: float = 1.0  # of softmax, in the unit of the scores
    lower_is_better: bool = False

    def shares(self, scores: Sequence[float]) -> tuple[float, ...]:
        """Returns one share for each score; their sum is 1."""
        signed = [-score if self.lower_is_better else score for score in scores]
        return KINDS[self.kind](signed, self.temperature)


def score_meaning(text: str, *, lower_is_better: bool = False) -> ScoreMeaning:
    """Returns the meaning that a text such as "softmax:0.5" names. Raises InvalidArgument if it names none."""
    kind, _, temperature = text.partition(UNIT_FOLLOWS)
    try:
        unit = float(temperature) if temperature else 1.0
    except ValueError:
        unit = math.nan
    if (
        kind not in KINDS
        or (UNIT_FOLLOWS in text and (kind != "softmax" or not temperature))
        or not 0 < unit < math.inf
    ):
        raise InvalidArgument(
            field="--scores", problem=f"{text!r} names no meaning; give {FORMS}, with a temperature above 0"
        )
    return ScoreMeaning(kind, unit, lower_is_better)


def _softmax(scores: Sequence[float], temperature: float) -> tuple[float, ...]:
    powers = [math.exp((score - max(scores)) / temperature) for score in scores]
    return tuple(power / math.fsum(powers) for power in powers)


def _best_of(scores: Sequence[float], _temperature: float) -> tuple[float, ...]:
    return top_of([-score for score in scores])


def _win_rate(scores: Sequence[float], _temperature: float) -> tuple[float, ...]:
    """Returns the share of all comparisons of two candidates that each candidate wins; a tie is half a win for both."""
    comparisons = len(scores) * (len(scores) - 1) / 2
    wins = [sum((mine > other) + (mine == other) / 2 for other in scores) - 0.5 for mine in scores]
    return tuple(won / comparisons for won in wins)


KINDS: dict[str, Callable[[Sequence[float], float], tuple[float, ...]]] = {
    "softmax": _softmax,
    "best-of": _best_of,
    "win-rate": _win_rate,
}
