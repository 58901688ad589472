"""The weight that a client gives to its own update in a private round, where nobody else learns its examples and its distance.

Plain rounds have the same rules in server/rounds/weighting.py, which also names their sources: there the coordinator knows every
client's distance. Here a client knows its own distance d and the mean distance D: D is the mean over the members of the round
that made the base version, from the tail of that round's sum. A factor of 1 is that of a member whose distance is D.

    q_fair    factor = (d / D)^q; the weight is proportional to examples * factor
    agnostic  factor <- factor * exp(gamma * (d - D)); the weight is proportional to the factor
    adaptive  factor = exp(fairness * (h - D)), where h is the exponential mean of the client's distances; the weight is
              proportional to the factor

Every factor is limited to 1 / MAX_FACTOR .. MAX_FACTOR. So a false distance, or a false D, gives an update at most MAX_FACTOR
times the weight of a member at the mean, and at least a MAX_FACTOR-th of it.
D is of the version before: while the model improves, D lies a little above the mean of the newest distances. That moves the
factors of all members alike, and the sum is divided by the sum of the weights. The agnostic factors add such differences up, to
at most gamma * (first mean distance - last mean distance) in the exponent.
"""

import math
from dataclasses import dataclass
from typing import assert_never

from pluralllm.common.words.aggregation import Aggregation

MAX_FACTOR = 3.0
HISTORY_RATE = 0.5  # of the newest distance in the exponential mean
LEAST_DISTANCE = 1e-6  # below it a distance has no logarithm worth having
WEIGHT_STEPS = 2**20  # number of steps in a weight of 1, if it has a factor; so 128 weights stay far below 2^32


@dataclass(frozen=True, slots=True)
class OwnFactor:
    """A client's factor in one round, and the number that its next factor of the run starts from."""

    factor: float  # 1 / MAX_FACTOR .. MAX_FACTOR
    history: float | None  # agnostic: the factor; adaptive: the mean distance h; None before the first, and for q_fair


def own_factor(
    aggregation: Aggregation, distance: float | None, mean: float | None, history: float | None
) -> OwnFactor:
    """Returns a client's factor in a round.

    distance: d; None if the policy keeps it back: then D takes its place, as in plain rounds. mean: D; None in the first round,
    and if no member has reported a distance: then the factor is 1. history: as the round before has left it.
    """
    own = mean if distance is None else distance
    match aggregation.weighting:
        case "examples" | "uniform":
            return OwnFactor(1.0, history)
        case "q_fair" if own is not None and mean is not None:
            ratio = math.log(max(own, LEAST_DISTANCE)) - math.log(max(mean, LEAST_DISTANCE))
            return OwnFactor(_limited(aggregation.fairness * ratio), history)
        case "agnostic" if own is not None and mean is not None:
            before = 0.0 if history is None else math.log(history)
            factor = _limited(before + aggregation.fairness * (own - mean))
            return OwnFactor(factor, factor)
        case "adaptive" if own is not None:
            past = own if history is None else history * (1 - HISTORY_RATE) + own * HISTORY_RATE
            return OwnFactor(1.0 if mean is None else _limited(aggregation.fairness * (past - mean)), past)
        case "q_fair" | "agnostic" | "adaptive":
            return OwnFactor(1.0, history)
        case _:
            assert_never(aggregation.weighting)


def _limited(logarithm: float) -> float:
    """Returns exp(logarithm) within the limits of a factor."""
    return min(MAX_FACTOR, max(1 / MAX_FACTOR, math.exp(min(logarithm, math.log(MAX_FACTOR)))))


def weight_bounds(aggregation: Aggregation) -> tuple[int, int]:
    """Returns the smallest and the largest weight of an honest update in a private round; the largest one counts in full."""
    if not aggregation.is_fair:
        return 1, aggregation.max_examples
    least = own_weight(aggregation, 1, 1 / MAX_FACTOR)
    return least, WEIGHT_STEPS


def own_weight(aggregation: Aggregation, examples: int, factor: float) -> int:
    """Returns the weight of an update in a private round, within `weight_bounds`.

    examples: number of questions behind the update. factor: of `own_factor`; without effect for the weightings examples and
    uniform, whose weights are numbers of examples.
    """
    counted = max(1, min(examples, aggregation.max_examples))
    match aggregation.weighting:
        case "examples":
            return counted
        case "uniform":
            return aggregation.max_examples
        case "q_fair":
            return round(WEIGHT_STEPS * counted / aggregation.max_examples * factor / MAX_FACTOR)
        case "agnostic" | "adaptive":
            return round(WEIGHT_STEPS * factor / MAX_FACTOR)
        case _:
            assert_never(aggregation.weighting)
