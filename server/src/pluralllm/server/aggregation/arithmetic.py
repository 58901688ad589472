"""Calculates in float64 and takes the clients in sorted order, so that equal inputs give equal bits.

The functions work on one slice (a range of the model's values) at a time.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def weighted_mean(deltas: NDArray[np.float32], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the mean of the clients' deltas, weighted by `weights` (FedAvg).

    Shapes: deltas (clients, slice), weights (clients,), result (slice,). clients: number of clients. slice: number of values in
    the slice.
    Source: McMahan et al. 2017 (arXiv 1602.05629), Algorithm 1, last line of the server's loop.
    """
    total = np.zeros(deltas.shape[1])  # (slice,)
    add_weighted(total, deltas, weights)
    return mean_of(total, weights)


def add_weighted(total: NDArray[np.float64], deltas: NDArray[np.float32], weights: NDArray[np.float64]) -> None:
    """Adds the weighted deltas of some clients to a total, in place.

    Shapes: total (slice,), deltas (clients, slice), weights (clients,). The function adds one client after the other, so that
    the sum has a fixed order, and a sum over blocks of clients has the bits of the sum over all of them. A matrix product does
    not guarantee an order.
    """
    term = np.empty_like(total)
    for delta, weight in zip(deltas, weights, strict=True):
        np.multiply(delta, weight, out=term, dtype=np.float64)  # exact float64 of each number, times the weight
        total += term


def mean_of(total: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the mean that belongs to a total over all clients. Shapes: total (slice,), weights (clients,), result (slice,)."""
    mean: NDArray[np.float64] = total / sum(weights.tolist())
    return mean


def shorten(deltas: NDArray[np.float32], scales: Sequence[float]) -> None:
    """Multiplies each client's delta by its factor, in place. Does nothing if `scales` is empty.

    Shapes: deltas (clients, slice), scales (clients,). clients: number of clients. slice: number of values in the slice.
    """
    for delta, scale in zip(deltas, scales, strict=True) if scales else ():
        if scale != 1:
            np.multiply(delta, np.float32(scale), out=delta)
