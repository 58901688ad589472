"""The server optimizers: what makes the next model version from the mean of a round's updates, one slice of values at a time.

The coordinator takes these steps; in private rounds each client takes them again and compares the bits.
"""

from collections.abc import Callable
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.errors.private_rounds import SumImplausible
from pluralllm.common.words.aggregation import Aggregation
from pluralllm.common.words.spec import RunSpec

# [slice] float32 base, [slice] float64 mean delta, [moments, slice] float32 moments
# -> [slice] float32 next version, [moments, slice] float32 next moments
ServerOptimizer = Callable[
    [NDArray[np.float32], NDArray[np.float64], NDArray[np.float32]], tuple[NDArray[np.float32], NDArray[np.float32]]
]


def first_moments(aggregation: Aggregation) -> tuple[float, ...]:
    """Returns one start value for each moment of the server optimizer; () for fedavg, which has no moments.

    Moments are the optimizer's state. At the start, a moment has its start value at every parameter of the model.
    Source: Reddi et al. 2021, Algorithm 2. The algorithm needs second moments of at least tau^2, because smaller second moments
    make the first steps huge.
    """
    match aggregation.optimizer:
        case "fedavg":
            return ()
        case "fedavgm":
            return (0.0,)
        case "fedadam" | "fedyogi":
            return (0.0, aggregation.adaptivity**2)
        case _:
            assert_never(aggregation.optimizer)


def server_optimizer(aggregation: Aggregation) -> ServerOptimizer:
    """Returns the function that makes a slice of the next version from the base version, the mean delta and the moments.

    The base version (base) is the model version that the round trains from. delta is the mean delta, and m and v are the
    moments. The run spec sets rate, beta1, beta2 and tau. The type ServerOptimizer describes the arrays' shapes.

    fedavg   next = base + rate * delta
    fedavgm  m = beta1 * m + delta;                next = base + rate * m                       (Hsu et al. 2019, section 4.3)
    fedadam  m = beta1 * m + (1 - beta1) * delta;  next = base + rate * m / (sqrt(v) + tau)     (Reddi et al. 2021, Algorithm 2)
             v = beta2 * v + (1 - beta2) * delta^2
    fedyogi  m and next as fedadam;                v = v - (1 - beta2) * delta^2 * sign(v - delta^2)
    """
    rate, beta1, beta2 = aggregation.server_learning_rate, aggregation.momentum, aggregation.second_moment
    kind, count = aggregation.optimizer, len(first_moments(aggregation))

    def optimize(
        base: NDArray[np.float32], delta: NDArray[np.float64], moments: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        exact = moments.astype(np.float64).reshape(count, delta.size)  # (moments, slice)
        if kind == "fedavg":
            step = delta
        elif kind == "fedavgm":
            step = exact[0] = beta1 * exact[0] + delta
        else:
            m, v, square = exact[0], exact[1], delta * delta  # (slice,) each
            exact[0] = beta1 * m + (1 - beta1) * delta
            if kind == "fedadam":
                exact[1] = beta2 * v + (1 - beta2) * square
            else:
                exact[1] = v - (1 - beta2) * square * np.sign(v - square)
            step = exact[0] / (np.sqrt(exact[1]) + aggregation.adaptivity)
        return (base.astype(np.float64) + rate * step).astype(np.float32), exact.astype(np.float32)

    return optimize


def optimizer_of_round(spec: RunSpec, number: int) -> ServerOptimizer:
    """Returns the server optimizer of a round. The one of a closing round leaves the base version and the moments as they are.

    number: of the round. It raises SumImplausible for a closing round whose sum is not 0, because nobody trains in it.
    """
    return _unchanged if spec.is_closing_round(number) else server_optimizer(spec.aggregation)


def _unchanged(
    base: NDArray[np.float32], delta: NDArray[np.float64], moments: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    if delta.any():
        raise SumImplausible(problem="the closing round has updates that are not 0, and nobody trains in it")
    return base, moments
