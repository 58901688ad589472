"""Sums of updates whose members have weighted them by themselves: the mean is that of a plain computation with these weights."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.process_harness import process_spec

from pluralllm.common.errors.private_rounds import SumImplausible
from pluralllm.common.private_rounds.ring import (
    DISTANCE,
    WEIGHT,
    MemberTail,
    SumTail,
    clipping_of,
    decoded_mean,
    quantised,
)
from pluralllm.common.private_rounds.sum_files import ring_of, tail_of
from pluralllm.common.words.own_weights import WEIGHT_STEPS, own_weight, weight_bounds
from pluralllm.common.words.spec import RunSpec

VALUES, MOST, MEMBERS = 40, 400, 5
FAIR: list[Any] = ["q_fair", "agnostic", "adaptive"]


def spec_of(weighting: str) -> RunSpec:
    return process_spec(
        aggregation={"weighting": weighting, "max_examples": MOST},
        round={"target_clients": MEMBERS, "min_clients": 4},
        private_rounds={"clip_norm": 4.0},
    )


SPECS = {weighting: spec_of(weighting) for weighting in ("uniform", *FAIR)}


def summed(
    spec: RunSpec, deltas: NDArray[np.float32], examples: tuple[int, ...], factors: tuple[float, ...]
) -> tuple[NDArray[np.uint32], list[int]]:
    """Returns the sum of the members' numbers, and that of their tails. Shape: deltas (members, VALUES)."""
    ring, total, words = ring_of(spec, MEMBERS), np.zeros(VALUES, np.uint32), np.zeros(64, np.uint32)
    for number, (delta, count, factor) in enumerate(zip(deltas, examples, factors, strict=True)):
        weight = own_weight(spec.aggregation, count, factor)
        clipping = clipping_of(delta, ring)
        total += quantised(delta, clipping, weight, ring, np.random.default_rng(number))
        tail = MemberTail(weight, clipping.is_clipped, count, MOST, loss=1.0, distance=0.3, distance_weight=MOST)
        words += tail.words()
    return total, words.tolist()


def mean_of(spec: RunSpec, total: NDArray[np.uint32], words: list[int]) -> NDArray[np.float64]:
    tail = tail_of(spec, MEMBERS, MEMBERS, words)
    return decoded_mean(total, ring_of(spec, MEMBERS), tail.weight)


@pytest.mark.parametrize("weighting", FAIR)
@given(
    seed=st.integers(0, 2**32 - 1),
    examples=st.tuples(*[st.integers(20, MOST)] * MEMBERS),
    factors=st.tuples(*[st.floats(1 / 3, 3)] * MEMBERS),
)
@settings(max_examples=20, deadline=None)
def test_the_mean_of_a_sum_is_that_of_a_plain_computation_with_the_same_weights(
    weighting: Any, seed: int, examples: tuple[int, ...], factors: tuple[float, ...]
) -> None:
    deltas = np.random.default_rng(seed).normal(0, 0.1, (MEMBERS, VALUES)).astype(np.float32)
    mean = mean_of(SPECS[weighting], *summed(SPECS[weighting], deltas, examples, factors))
    shares = np.array(factors) * (np.array(examples) if weighting == "q_fair" else 1)
    expected = (shares / shares.sum()) @ deltas.astype(np.float64)
    assert np.abs(mean - expected).max() < 2e-5


@pytest.mark.parametrize("weighting", FAIR)
def test_with_all_factors_1_the_mean_is_that_of_uniform_weights(weighting: Any) -> None:
    deltas = np.random.default_rng(7).normal(0, 0.1, (MEMBERS, VALUES)).astype(np.float32)
    even = (100,) * MEMBERS, (1.0,) * MEMBERS
    means = [mean_of(SPECS[name], *summed(SPECS[name], deltas, *even)) for name in (weighting, "uniform")]
    assert np.abs(means[0] - means[1]).max() < 1e-6


def test_the_tail_of_a_fair_sum_has_its_own_bounds_and_the_plain_mean_of_the_distances() -> None:
    spec, counts = SPECS["agnostic"], (30, 400, 20, 80, 100)
    _, words = summed(spec, np.zeros((MEMBERS, VALUES), np.float32), counts, (1.0, 3.0, 1 / 3, 1.0, 1.0))
    tail = tail_of(spec, MEMBERS, MEMBERS, words)
    assert tail.weight == 3 * round(WEIGHT_STEPS / 3) + WEIGHT_STEPS + round(WEIGHT_STEPS / 9)
    assert tail.distance == pytest.approx(round(0.3 * 4096) / 4096)
    least, most = weight_bounds(spec.aggregation)
    for weight in (MEMBERS * least - 1, MEMBERS * most + 1):
        with pytest.raises(SumImplausible, match="weights"):
            tail_of(spec, MEMBERS, MEMBERS, [weight if n == WEIGHT else word for n, word in enumerate(words)])
    too_far = MEMBERS * 4096 + 1
    with pytest.raises(SumImplausible, match="distances"):
        tail_of(spec, MEMBERS, MEMBERS, [too_far if n == DISTANCE else word for n, word in enumerate(words)])


def test_a_distance_counts_as_its_own_weight_says() -> None:
    words = [
        MemberTail(1, False, count, MOST, loss=0.5, distance=d, distance_weight=MOST).words()
        for count, d in ((20, 0.1), (400, 0.3))
    ]
    tail = SumTail.of((words[0] + words[1]).tolist(), 2, ring_of(SPECS["uniform"], MEMBERS), MOST)
    assert tail.distance == pytest.approx(0.2, abs=1e-3)
