"""An aggregator that limits what one member can move: the winsorized mean of each value of the model."""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from pluralllm.server.aggregation.aggregator import Aggregator


def clamped_mean(clamped: str = "1") -> Aggregator:
    """Returns the aggregator. clamped: how many of the largest and of the smallest numbers are moved to the next one inside.

    Raises ValueError if this is no number of at least 1.
    """
    if int(clamped) < 1:
        raise ValueError(f"clamped is {clamped}, must be at least 1")
    return Aggregator(combine=partial(_combine, int(clamped)))


def _combine(clamped: int, deltas: NDArray[np.float32], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the weighted mean after the ends are clamped. Shapes: (clients, values), (clients,) -> (values,)."""
    if len(deltas) <= 2 * clamped:
        raise ValueError(f"{len(deltas)} updates are too few")
    ordered = np.sort(deltas, axis=0)
    total = np.zeros(deltas.shape[1])
    for delta, weight in zip(deltas, weights, strict=True):  # one client after the other: a fixed order of the sum
        total += np.clip(delta, ordered[clamped], ordered[-1 - clamped]) * weight
    mean: NDArray[np.float64] = total / sum(weights.tolist())
    return mean
