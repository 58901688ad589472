"""The arithmetic of a round, slice by slice: float64 inside, clients in sorted order, so the bits depend on nothing else."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.spec import Aggregation
from pluralllm.server.events import Receipt

# [clients, slice] float32 deltas and [clients] float64 weights -> [slice] float64
Aggregator = Callable[[NDArray[np.float32], NDArray[np.float64]], NDArray[np.float64]]
# [slice] float32 base and [slice] float64 mean delta -> [slice] float32 next version
ServerOptimizer = Callable[[NDArray[np.float32], NDArray[np.float64]], NDArray[np.float32]]


def weights_of(receipts: Sequence[Receipt], aggregation: Aggregation) -> NDArray[np.float64]:
    """The clients' weights, shape [clients], in the order given: examples up to the cap, or 1 each."""
    if aggregation.weighting == "uniform":
        return np.ones(len(receipts))
    return np.array([min(receipt.examples, aggregation.max_examples) for receipt in receipts], dtype=np.float64)


def weighted_mean(deltas: NDArray[np.float32], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the deltas, weighted (FedAvg): [clients, slice], [clients] -> [slice].

    One client after the other, so that the sum has one order; a matrix product would not promise that.
    Source: McMahan et al. 2017 (arXiv 1602.05629), Algorithm 1, last line of the server's loop.
    """
    total = np.zeros(deltas.shape[1])  # (slice,)
    for delta, weight in zip(deltas, weights, strict=True):
        total += weight * delta.astype(np.float64)
    mean: NDArray[np.float64] = total / sum(weights.tolist())
    return mean


def gradient_step(server_learning_rate: float) -> ServerOptimizer:
    """next = base + rate * mean delta; rate 1 is FedAvg."""

    def optimize(base: NDArray[np.float32], mean: NDArray[np.float64]) -> NDArray[np.float32]:
        return (base.astype(np.float64) + server_learning_rate * mean).astype(np.float32)

    return optimize
