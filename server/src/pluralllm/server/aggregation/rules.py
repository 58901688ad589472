"""Rules that take the place of the weighted mean, so that a few hostile members cannot move the model where they like.

The functions are pure. They calculate in float64 and in a fixed order, and use no matrix product, so that `verify` gives the
same bits on another machine. aggregator.py chooses among them.

trimmed_mean and median look at each value of the model alone, so they work slice by slice and their bits do not depend on the
slices. multi_krum looks at whole updates: one pass over the slices gives the distances between the updates, and a second pass
the mean of those that are chosen. median_norm_clip needs nothing here: the round machine decides by how much updates are
shortened (rounds/clipping.py), before any file is read.

Weights: trimmed_mean leaves out numbers by how many they are, and the mean of the others is weighted, so that a weight moves
the result only between numbers of honest members. median is the weighted median: half of the weight lies on each side.
A member has up to three even shares (rounds/weighting.py), so with weights that differ as much as that, the median holds
against fewer than a sixth of the members; with even weights, against fewer than half. multi_krum takes no weights.

Sources: Yin et al. 2018 (arXiv 1803.01498), definitions 1 and 2, for the coordinate-wise median and trimmed mean; the weights
are this project's. Blanchard et al. 2017 (NIPS 2017, arXiv 1703.02757), sections 4 and 5, for Krum and Multi-Krum.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.weights.update_format import BLOCK

COLUMNS = BLOCK  # values of the model that are worked on at once: few enough that the sorted copies stay in the cache
WEIGHT_BITS = 52  # of the sum of all weights as a whole number: then every partial sum is exact in float64

Exact = NDArray[np.float64]
Floats = NDArray[np.float32]


def trimmed_mean(deltas: Floats, weights: Exact, trimmed: int) -> Exact:
    """Returns for each value the weighted mean of the clients' numbers without the `trimmed` largest and smallest ones.

    The number of the earlier client counts as the smaller of two equal ones. Shapes: deltas (clients, slice), weights (clients,),
    result (slice,). There must be more than 2 * trimmed clients.
    """
    result = np.empty(deltas.shape[1])
    kept = slice(trimmed, len(deltas) - trimmed)
    for columns, numbers, heft in _sorted(deltas, weights):
        total, share = np.zeros(numbers.shape[1]), np.zeros(numbers.shape[1])
        for number, weight in zip(numbers[kept], heft[kept], strict=True):
            total += number * weight
            share += weight
        result[columns] = total / share
    return result


def median(deltas: Floats, weights: Exact) -> Exact:
    """Returns for each value the weighted median of the clients' numbers.

    The median is the mean of two numbers: the least one up to which at least half of the weight lies, and the least one up to
    which more than half of it lies. With even weights, that is the usual median.
    Shapes: deltas (clients, slice), weights (clients,), result (slice,).
    """
    result = np.empty(deltas.shape[1])
    for columns, numbers, heft in _sorted(deltas, _as_whole_numbers(weights)):
        below = np.cumsum(heft, axis=0)  # (clients, columns), with the own weight
        ends = [np.argmax(reached, axis=0)[None] for reached in (2 * below >= below[-1], 2 * below > below[-1])]
        lower, upper = (np.take_along_axis(numbers, end, axis=0)[0] for end in ends)
        result[columns] = (lower + upper) / 2
    return result


def closest(distances: Exact, attackers: int) -> tuple[int, ...]:
    """Returns the places of the updates that Multi-Krum chooses, ascending: all but the `attackers` ones farthest from others.

    An update's score is the sum of its squared distances to its n - attackers - 2 nearest others. Of equal scores, the earlier
    client's is the better one. Shape: distances (clients, clients), read above the diagonal only.
    """
    clients = len(distances)
    near = clients - attackers - 2
    both = np.triu(distances, 1)
    both += both.T
    scores = [math.fsum(sorted(row[:place] + row[place + 1 :])[:near]) for place, row in enumerate(both.tolist())]
    best = sorted(range(clients), key=lambda place: (scores[place], place))
    return tuple(sorted(best[: clients - attackers]))


def add_squared_distances(total: Exact, deltas: Floats) -> None:
    """Adds the squared distances between a slice of the clients' updates to `total`, in place, above its diagonal.

    Shapes: total (clients, clients), deltas (clients, slice). The sums have the same bits for all slices whose length is a
    multiple of COLUMNS (the last slice may be shorter).
    """
    for start in range(0, deltas.shape[1], COLUMNS):
        columns = deltas[:, start : start + COLUMNS].astype(np.float64)
        for client in range(len(deltas) - 1):
            apart = columns[client + 1 :] - columns[client]
            total[client, client + 1 :] += np.square(apart, out=apart).sum(axis=1)


def _sorted(deltas: Floats, weights: Exact) -> Iterator[tuple[slice, Exact, Exact]]:
    """Yields some columns of a slice at a time: the clients' numbers in ascending order, and the weights in the same order.

    Shapes: deltas (clients, slice), weights (clients,); both results (clients, columns).
    """
    for start in range(0, deltas.shape[1], COLUMNS):
        columns = slice(start, min(start + COLUMNS, deltas.shape[1]))
        numbers = np.ascontiguousarray(deltas[:, columns].T)  # (columns, clients)
        order = np.argsort(numbers, axis=1, kind="stable")
        ascending = np.take_along_axis(numbers, order, axis=1)
        yield columns, ascending.T.astype(np.float64, order="C"), np.ascontiguousarray(weights[order].T)


def _as_whole_numbers(weights: Exact) -> Exact:
    """Returns the weights times one power of two, rounded, so that every sum of them is exact and even weights stay even."""
    _, exponent = math.frexp(math.fsum(weights.tolist()))
    whole: Exact = np.round(weights * 2.0 ** (WEIGHT_BITS - exponent))
    return whole
