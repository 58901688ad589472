import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from support.coordinator_harness import small_spec

from pluralllm.common.errors.private_rounds import SumImplausible
from pluralllm.common.weights.server_optimizer import first_moments, optimizer_of_round, server_optimizer
from pluralllm.common.words.aggregation import Aggregation
from pluralllm.common.words.private_rounds import PrivateRounds
from pluralllm.server.aggregation.arithmetic import shorten, weighted_mean

OPTIMIZERS: list[Any] = ["fedavg", "fedavgm", "fedadam", "fedyogi"]
floats = st.floats(-1e3, 1e3, width=32)


@given(st.data(), st.integers(1, 6), st.integers(1, 40))
def test_the_weighted_mean_is_the_naive_float64_one_bit_for_bit(data: st.DataObject, clients: int, width: int) -> None:
    deltas = data.draw(hnp.arrays(np.float32, (clients, width), elements=floats))
    weights = data.draw(hnp.arrays(np.float64, clients, elements=st.integers(1, 10**6).map(float)))
    for position in range(width):
        total = 0.0
        for client in range(clients):
            total += float(weights[client]) * float(deltas[client, position])
        naive = total / sum(float(weight) for weight in weights)
        assert weighted_mean(deltas, weights)[position].tobytes() == np.float64(naive).tobytes()


def test_the_server_learning_rate_scales_the_step() -> None:
    base, mean = np.array([1.0, 2.0], dtype=np.float32), np.array([0.5, -1.0])
    stepped, moments = server_optimizer(Aggregation(server_learning_rate=0.5))(base, mean, np.empty((0, 2), np.float32))
    assert stepped.tolist() == [1.25, 1.5]
    assert stepped.dtype == np.float32
    assert moments.shape == (0, 2)


def naive_step(aggregation: Aggregation, base: float, delta: float, moments: list[float]) -> tuple[float, list[float]]:
    """Computes one value's step in Python's floats, as the papers define it."""
    beta1, beta2 = aggregation.momentum, aggregation.second_moment
    if aggregation.optimizer == "fedavg":
        return base + aggregation.server_learning_rate * delta, []
    if aggregation.optimizer == "fedavgm":
        m = beta1 * moments[0] + delta
        return base + aggregation.server_learning_rate * m, [m]
    m, v, square = beta1 * moments[0] + (1 - beta1) * delta, moments[1], delta * delta
    if aggregation.optimizer == "fedadam":
        v = beta2 * v + (1 - beta2) * square
    else:
        v = v - (1 - beta2) * square * ((v > square) - (v < square))
    return base + aggregation.server_learning_rate * (m / (math.sqrt(v) + aggregation.adaptivity)), [m, v]


def started(aggregation: Aggregation, width: int) -> NDArray[np.float32]:
    """Returns the moments before the first round, shape [moments, width]."""
    return np.repeat(np.array(first_moments(aggregation), np.float32)[:, None], width, axis=1)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_server_optimizer_is_the_naive_one_over_several_rounds_bit_for_bit(optimizer: Any) -> None:
    aggregation = Aggregation(optimizer=optimizer, server_learning_rate=0.07, momentum=0.8, second_moment=0.95)
    rng = np.random.default_rng(1)
    values, step = rng.normal(0, 0.1, 50).astype(np.float32), server_optimizer(aggregation)
    moments = started(aggregation, 50)
    naive, kept = values.tolist(), moments.T.tolist()  # the values that are kept between rounds are float32
    for _ in range(6):
        delta = rng.normal(0, 0.01, 50)
        values, moments = step(values, delta, moments)
        for position in range(50):
            following, state = naive_step(aggregation, naive[position], float(delta[position]), kept[position])
            naive[position] = float(np.float32(following))
            kept[position] = [float(np.float32(moment)) for moment in state]
        assert values.tolist() == naive
        assert moments.T.tolist() == kept
        assert values.dtype == np.float32
        assert moments.dtype == np.float32


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_slice_is_stepped_as_the_whole_is(optimizer: Any) -> None:
    aggregation = Aggregation(optimizer=optimizer)
    step, rng = server_optimizer(aggregation), np.random.default_rng(2)
    base, delta, moments = rng.normal(size=9).astype(np.float32), rng.normal(size=9), started(aggregation, 9)
    whole, state = step(base, delta, moments)
    for columns in (slice(0, 4), slice(4, 9)):
        piece, kept = step(base[columns], delta[columns], moments[:, columns])
        assert piece.tobytes() == whole[columns].tobytes()
        assert kept.tobytes() == state[:, columns].tobytes()


def test_without_momentum_fedavgm_is_fedavg() -> None:
    base, delta = np.array([1.0, -2.0], np.float32), np.array([0.3, 0.1])
    plain, _ = server_optimizer(Aggregation())(base, delta, np.empty((0, 2), np.float32))
    without = Aggregation(optimizer="fedavgm", momentum=0.0)
    assert server_optimizer(without)(base, delta, started(without, 2))[0].tolist() == plain.tolist()


def test_second_moments_begin_at_the_square_of_the_adaptivity() -> None:
    assert first_moments(Aggregation(optimizer="fedyogi", adaptivity=0.5)) == (0.0, 0.25)
    assert [len(first_moments(Aggregation(optimizer=each))) for each in OPTIMIZERS] == [0, 1, 2, 2]


def test_fedyogi_forgets_a_large_past_more_slowly_than_fedadam() -> None:
    large, small = np.array([1.0]), np.array([1e-3])
    left = {}
    for optimizer in ("fedadam", "fedyogi"):
        aggregation = Aggregation(optimizer=optimizer)
        step, moments = server_optimizer(aggregation), started(aggregation, 1)
        for delta in (large, *[small] * 100):
            _, moments = step(np.zeros(1, np.float32), delta, moments)
        left[optimizer] = float(moments[1, 0])
    assert left["fedyogi"] > 2 * left["fedadam"]


def test_updates_are_shortened_in_place_by_their_factors() -> None:
    deltas = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    shorten(deltas, ())
    assert deltas.tolist() == [[1, 2], [3, 4], [5, 6]]
    shorten(deltas, (1.0, 0.5, 0.0))
    assert deltas.tolist() == [[1, 2], [1.5, 2], [0, 0]]
    with pytest.raises(ValueError, match="zip"):
        shorten(deltas, (1.0,))


def test_moments_start_at_zero_and_second_moments_at_the_square_of_tau() -> None:
    starts = {kind: first_moments(Aggregation(optimizer=kind, adaptivity=0.5)) for kind in OPTIMIZERS}
    assert starts == {"fedavg": (), "fedavgm": (0.0,), "fedadam": (0.0, 0.25), "fedyogi": (0.0, 0.25)}


def test_yogi_keeps_a_second_moment_that_is_the_square_already() -> None:
    step = server_optimizer(Aggregation(optimizer="fedyogi"))
    moments = np.array([[0.0], [4.0]], np.float32)
    _, kept = step(np.zeros(1, np.float32), np.array([2.0]), moments)
    assert kept[1].tolist() == [4.0]


def test_a_closing_round_leaves_the_base_and_its_moments_and_allows_no_update_but_0() -> None:
    spec = small_spec(rounds=2, aggregation={"optimizer": "fedavgm"})
    spec = spec.model_copy(update={"format": "pluralllm.run/4", "private_rounds": PrivateRounds()})
    base, moments = np.array([-0.0, 1.5, 1e-42], np.float32), np.array([[0.5, -0.0, 2.0]], np.float32)
    following, kept = optimizer_of_round(spec, 3)(base, np.zeros(3), moments)
    assert (following.tobytes(), kept.tobytes()) == (base.tobytes(), moments.tobytes())
    moved, _ = optimizer_of_round(spec, 2)(base, np.zeros(3), moments)
    assert moved[0] != base[0], "a round that trains goes on with its momentum"
    with pytest.raises(SumImplausible, match="nobody trains"):
        optimizer_of_round(spec, 3)(base, np.array([0.0, 0.0, -1e-9]), moments)
