"""Fairness-aware weights: clients that the base model predicts badly count more. Pure, and free of numpy: the round machine asks.

A client's distance is the mean Jensen-Shannon distance of the round's base model on the targets of the client's first local step,
before any training: 1 - alignment, of answers as that step has them (sharpened, and predicted with dropout, if the spec says so),
so one round's is noisy. A client may lie about it, or give none: whoever gives none counts with the mean of those given; if
nobody gives one, weights are by examples and nothing is learnt. And no weight leaves even share / MAX_LEANING ..
even share * MAX_LEANING, an even share being 1 / clients, whatever the distances say.

    q_fair    weight ~ examples * distance^q. q-FFL (Li et al. 2020, arXiv 1905.10497) without the normalisation of its steps by a
              Lipschitz constant: that is for gradients, and some local steps of Adam are none. q -> 0 is weighting by examples.
    agnostic  lambda ~ lambda * exp(gamma * distance) over the clients seen so far, weight ~ lambda: the exponentiated-gradient
              form of agnostic federated learning (Mohri et al. 2019, arXiv 1902.00146). Who is not in the round counts with the
              round's mean.
    adaptive  weight ~ exp(fairness * h), h the exponential mean of the client's distances: by historical alignment, as Srewa et
              al. 2025 (arXiv 2512.08786) weigh the groups' rewards; here it is their updates.
"""

import math
from collections.abc import Mapping, Sequence
from typing import assert_never

from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.spec import Aggregation
from pluralllm.server.rounds.events import Receipt

MAX_LEANING = 3.0  # a weight over an even share, at most; its inverse at least: who falls behind later can come back
HISTORY_RATE = 0.5  # of the newest distance in the exponential mean
LEAST_DISTANCE = 1e-6  # below it a distance has no logarithm worth having
DIGITS = 12  # weights and standing are rounded: exp may differ in its last bit on the machine that verifies
MAX_SPREAD = 50.0  # of scores: what is e^50 times smaller is as good as nothing, and larger numbers lose their digits
BISECTIONS = 60  # of about 50: past the precision of a float

Standing = tuple[tuple[ClientId, float], ...]  # sorted by client; agnostic: lambda, adaptive: mean distance; else empty


def weigh(
    receipts: Sequence[Receipt], aggregation: Aggregation, standing: Standing
) -> tuple[tuple[float, ...], Standing]:
    """The weights of the receipts, in their order, sum 1; and the standing once they have been used.

    For weighting by examples and uniform there are none to record: `aggregate.weights_of` derives them from the receipts.
    """
    sizes = [math.log(min(receipt.examples, aggregation.max_examples)) for receipt in receipts]
    distances = _distances(receipts)
    before = dict(standing)
    match aggregation.weighting:
        case "examples" | "uniform":
            return (), standing
        case _ if not distances:
            return _shares(sizes), standing
        case "q_fair":
            logs = [math.log(max(distance, LEAST_DISTANCE)) for distance in distances.values()]
            return _shares([size + aggregation.fairness * log for size, log in zip(sizes, logs, strict=True)]), standing
        case "agnostic":
            after = _mixture(before, distances, aggregation.fairness)
            return _shares([math.log(after[client]) for client in distances]), _sorted(after)
        case "adaptive":
            history = {c: before.get(c, d) * (1 - HISTORY_RATE) + d * HISTORY_RATE for c, d in distances.items()}
            return _shares([aggregation.fairness * h for h in history.values()]), _sorted(before | history)
        case _:
            assert_never(aggregation.weighting)


def _distances(receipts: Sequence[Receipt]) -> dict[ClientId, float]:
    """By client, in the order of the receipts; the mean for whoever gave none; empty if nobody gave one."""
    given = [receipt.distance for receipt in receipts if receipt.distance is not None]
    if not given:
        return {}
    mean = sum(given) / len(given)
    return {r.client: mean if r.distance is None else r.distance for r in receipts}


def _mixture(
    before: Mapping[ClientId, float], distances: Mapping[ClientId, float], step: float
) -> dict[ClientId, float]:
    """lambda after a step, over all clients seen so far, sum 1. A newcomer starts with an even share of what is there."""
    even = sum(before.values()) / len(before) if before else 1.0
    mean = sum(distances.values()) / len(distances)
    seen = sorted({*before, *distances})
    scores = [math.log(before.get(client, even)) + step * (distances.get(client, mean) - mean) for client in seen]
    return dict(zip(seen, _shares(scores), strict=True))


def _sorted(numbers: Mapping[ClientId, float]) -> Standing:
    return tuple((client, round(number, DIGITS)) for client, number in sorted(numbers.items()))


def _shares(scores: Sequence[float]) -> tuple[float, ...]:
    """exp(score) scaled so that the sum is 1, each within MAX_LEANING of an even share.

    One offset for all scores does both; the sum never falls as it rises, so bisection finds it.
    """
    low, high = math.log(1 / len(scores) / MAX_LEANING), math.log(MAX_LEANING / len(scores))
    top = max(scores)
    relative = [max(score - top, -MAX_SPREAD) for score in scores]

    def shares(offset: float) -> list[float]:
        return [math.exp(min(high, max(low, score + offset))) for score in relative]

    least, most = low, high - min(relative)  # all at the lower bound, all at the upper
    for _ in range(BISECTIONS):
        middle = (least + most) / 2
        if sum(shares(middle)) < 1:
            least = middle
        else:
            most = middle
    return tuple(round(share, DIGITS) for share in shares(most))
