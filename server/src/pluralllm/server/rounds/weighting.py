"""Weights of updates: fairness-aware weights, and the bound on the weight of one client.

Fairness-aware weights: a client's update counts more if the base version predicts the client's answers badly.

The functions are pure and use no numpy, because the round machine calls them. The base version is the model version that
the round trains from.

A client's distance is the mean Jensen-Shannon distance between the base version's predictions and the client's answers. The
distance is measured on the target questions of the client's first local step, before any training. The distance equals
1 - alignment score. The first step may sharpen the answers and may predict with dropout, as the run spec says. So the
distance of a single round is noisy. A client may report a false distance or no distance. A client that reports no distance
gets the mean of the reported distances. If no client reports a distance, the weights follow the numbers of examples, and the
history stays as it was.

The bound: whatever the clients report, every weight stays within even share / MAX_LEANING .. even share * MAX_LEANING; an even
share is 1 / number of clients. The bound holds for fairness-aware weights. In a run of the format run/2 or later it holds for
weights by examples as well, because nobody can check how many examples a client has. The lower bound matters in a cohort of
three or less: three even shares of such a cohort are the whole model.

In private rounds the coordinator learns neither distances nor weights, and this module calculates nothing: each client weights
its own update (common/words/own_weights.py).

In the formulas, "~" means "is proportional to". q, gamma and fairness all stand for the run spec's setting `fairness`.

    q_fair    weight ~ examples * distance^q. This is q-FFL (Li et al. 2020, arXiv 1905.10497), but the steps are not normalised
              by a Lipschitz constant: the normalisation holds for gradients, and local steps of Adam are not gradients.
              The weights follow the examples as q goes to 0.
    agnostic  lambda ~ lambda * exp(gamma * distance) over the clients seen so far, weight ~ lambda: the exponentiated-gradient
              form of agnostic federated learning (Mohri et al. 2019, arXiv 1902.00146). A client that is not in the round
              counts with the round's mean distance.
    adaptive  weight ~ exp(fairness * h), where h is the exponential mean of the client's distances. Srewa et al. 2025
              (arXiv 2512.08786) weigh the rewards of groups by historical alignment; here the weights are for updates.
"""

import math
from collections.abc import Mapping, Sequence
from typing import assert_never

from pluralllm.common.words.aggregation import Aggregation
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.own_weights import HISTORY_RATE, LEAST_DISTANCE
from pluralllm.server.rounds.events import Receipt

MAX_LEANING = (
    3.0  # largest ratio of a weight to an even share; the least is its inverse, so that a client can come back
)
DIGITS = 12  # weights and history are rounded: exp may differ in its last bit on the machine that verifies
MAX_SPREAD = 50.0  # of scores: a share e^50 times smaller than another is 0 in effect, and larger numbers lose digits
BISECTIONS = 60  # of about 50: past the precision of a float

FairnessHistory = tuple[
    tuple[ClientId, float], ...
]  # sorted by client; agnostic: lambda, adaptive: mean distance; else empty


def weigh(
    receipts: Sequence[Receipt], aggregation: Aggregation, history: FairnessHistory, *, limits_members: bool = False
) -> tuple[tuple[float, ...], FairnessHistory]:
    """Returns the weights of the receipts (in their order, sum 1) and the fairness history after this round.

    The weights are () if the weighting is "examples" or "uniform": `weights_of` then calculates the weights. With
    `limits_members`, weights by examples are returned if a client's share of the examples is outside the bound.
    history: for each client, one number from earlier rounds. The number is lambda for the weighting "agnostic", and
    the exponential mean of the client's distances for "adaptive".
    """
    sizes = [math.log(min(receipt.examples, aggregation.max_examples)) for receipt in receipts]
    distances = _distances(receipts)
    before = dict(history)
    match aggregation.weighting:
        case "examples" if limits_members and _is_uneven([min(r.examples, aggregation.max_examples) for r in receipts]):
            return _shares(sizes), history
        case "examples" | "uniform":
            return (), history
        case _ if not distances:
            return _shares(sizes), history
        case "q_fair":
            logs = [math.log(max(distance, LEAST_DISTANCE)) for distance in distances.values()]
            return _shares([size + aggregation.fairness * log for size, log in zip(sizes, logs, strict=True)]), history
        case "agnostic":
            after = _mixture(before, distances, aggregation.fairness)
            return _shares([math.log(after[client]) for client in distances]), _sorted(after)
        case "adaptive":
            means = {c: before.get(c, d) * (1 - HISTORY_RATE) + d * HISTORY_RATE for c, d in distances.items()}
            return _shares([aggregation.fairness * h for h in means.values()]), _sorted(before | means)
        case _:
            assert_never(aggregation.weighting)


def weights_of(
    receipts: Sequence[Receipt], aggregation: Aggregation, recorded: Sequence[float] = ()
) -> tuple[float, ...]:
    """Returns the clients' weights, in the order of `receipts`.

    recorded: the weights that `weigh` returned for the round. If `recorded` is empty, a client's weight is its number of
    examples, but at most max_examples of the run spec. If `recorded` is empty and the weighting is "uniform", every weight is 1.
    """
    if recorded:
        return tuple(recorded)
    if aggregation.weighting == "uniform":
        return (1.0,) * len(receipts)
    return tuple(float(min(receipt.examples, aggregation.max_examples)) for receipt in receipts)


def shares_of(
    receipts: Sequence[Receipt], aggregation: Aggregation, recorded: Sequence[float] = ()
) -> tuple[float, ...]:
    """Returns each client's share of a round's mean, from 0 to 1, in the order of `receipts`. The sum of the shares is 1.

    The arguments are those of `weights_of`.
    """
    weights = weights_of(receipts, aggregation, recorded)
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)


def _is_uneven(counts: Sequence[int]) -> bool:
    """Returns whether a count's share of the sum is outside even share / MAX_LEANING .. even share * MAX_LEANING."""
    even = sum(counts) / len(counts)
    return max(counts) > even * MAX_LEANING or min(counts) * MAX_LEANING < even


def _distances(receipts: Sequence[Receipt]) -> dict[ClientId, float]:
    """Returns each client's distance, in the order of the receipts; an empty dict if no client reports a distance.

    A client that reports no distance gets the mean of the reported distances.
    """
    reported = [receipt.distance for receipt in receipts if receipt.distance is not None]
    if not reported:
        return {}
    mean = sum(reported) / len(reported)
    return {r.client: mean if r.distance is None else r.distance for r in receipts}


def _mixture(
    before: Mapping[ClientId, float], distances: Mapping[ClientId, float], step: float
) -> dict[ClientId, float]:
    """Returns the lambda (weight in agnostic federated learning) of every client seen so far, after one step. The sum is 1.

    before: each client's lambda before this step; a new client starts with an even share. distances: the distances of this
    round's clients. step: the step size gamma.
    """
    even = sum(before.values()) / len(before) if before else 1.0
    mean = sum(distances.values()) / len(distances)
    seen = sorted({*before, *distances})
    scores = [math.log(before.get(client, even)) + step * (distances.get(client, mean) - mean) for client in seen]
    return dict(zip(seen, _shares(scores), strict=True))


def _sorted(numbers: Mapping[ClientId, float]) -> FairnessHistory:
    return tuple((client, round(number, DIGITS)) for client, number in sorted(numbers.items()))


def _shares(scores: Sequence[float]) -> tuple[float, ...]:
    """Returns one share (a number from 0 to 1) for each score, proportional to exp(score). The sum of the shares is 1.

    An even share is 1 / number of scores. Each share is limited to even share / MAX_LEANING .. even share * MAX_LEANING. The
    function adds one offset to all scores,
    and limits the shares. The sum of the shares never falls when the offset rises, so bisection finds the offset for sum 1.
    """
    low, high = math.log(1 / len(scores) / MAX_LEANING), math.log(MAX_LEANING / len(scores))
    top = max(scores)
    relative = [max(score - top, -MAX_SPREAD) for score in scores]

    def shares(offset: float) -> list[float]:
        return [math.exp(min(high, max(low, score + offset))) for score in relative]

    least, most = low, high - min(relative)  # all shares at the lower bound, all at the upper bound
    for _ in range(BISECTIONS):
        middle = (least + most) / 2
        if sum(shares(middle)) < 1:
            least = middle
        else:
            most = middle
    return tuple(round(share, DIGITS) for share in shares(most))
