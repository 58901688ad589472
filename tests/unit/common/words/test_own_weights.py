"""Weights that clients compute by themselves: those of plain rounds, but for the bounds, and never far from one another."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluralllm.common.words.aggregation import Aggregation
from pluralllm.common.words.ids import ClientId, Digest
from pluralllm.common.words.own_weights import MAX_FACTOR, WEIGHT_STEPS, own_factor, own_weight, weight_bounds
from pluralllm.common.words.private_rounds import MAX_MEMBERS, MAX_WEIGHT
from pluralllm.server.rounds.events import Receipt
from pluralllm.server.rounds.weighting import FairnessHistory, weigh

FAIR: list[Any] = ["q_fair", "agnostic", "adaptive"]
CLIENTS = [ClientId(name) for name in ("ann", "ben", "cat", "dan")]
MEAN = 0.25


def fair(weighting: Any, fairness: float = 1.0, most: int = 400) -> Aggregation:
    return Aggregation(weighting=weighting, fairness=fairness, max_examples=most)


@pytest.mark.parametrize("weighting", FAIR)
@given(distance=st.floats(1e-6, 0.83), fairness=st.floats(0.1, 100))
@settings(max_examples=20, deadline=None)
def test_with_all_distances_equal_all_factors_are_1_in_each_round(
    weighting: Any, distance: float, fairness: float
) -> None:
    history = None
    for mean in (None, distance, distance):
        made = own_factor(fair(weighting, fairness), distance, mean, history)
        assert made.factor == pytest.approx(1, abs=1e-9)
        history = made.history


def test_the_factors_are_those_of_the_formulas() -> None:
    assert own_factor(fair("q_fair", 2), 0.3, MEAN, None).factor == pytest.approx((0.3 / 0.25) ** 2)
    assert own_factor(fair("agnostic", 2), 0.3, MEAN, None).factor == pytest.approx(math.exp(2 * 0.05))
    assert own_factor(fair("agnostic", 2), 0.3, MEAN, 1.5).history == pytest.approx(1.5 * math.exp(2 * 0.05))
    assert own_factor(fair("adaptive", 20), 0.3, MEAN, None).factor == pytest.approx(math.exp(20 * 0.05))
    later = own_factor(fair("adaptive", 20), 0.3, MEAN, 0.2)
    assert (later.factor, later.history) == pytest.approx((1.0, 0.25))
    assert own_factor(fair("uniform"), 0.8, 0.1, None).factor == 1
    assert own_factor(fair("q_fair", 0.1), 0.0, MEAN, None).factor == pytest.approx(1 / MAX_FACTOR)


@pytest.mark.parametrize("weighting", FAIR)
@given(st.lists(st.tuples(*[st.floats(0.2, 0.3)] * 4), min_size=1, max_size=3), st.tuples(*[st.integers(1, 400)] * 4))
@settings(max_examples=15, deadline=None)
def test_weights_are_those_of_plain_rounds_where_no_bound_is_reached(
    weighting: Any, rounds: list[tuple[float, ...]], examples: tuple[int, ...]
) -> None:
    examples = examples if weighting != "q_fair" else tuple(200 + number // 4 for number in examples)
    aggregation, histories = fair(weighting), dict[ClientId, float | None]()
    plain_history: FairnessHistory = ()
    for distances in rounds:
        receipts = [Receipt(c, Digest(c), n, d) for c, n, d in zip(CLIENTS, examples, distances, strict=True)]
        plain, plain_history = weigh(receipts, aggregation, plain_history)
        mean = sum(distances) / 4
        made = [own_factor(aggregation, d, mean, histories.get(c)) for c, d in zip(CLIENTS, distances, strict=True)]
        histories = {client: one.history for client, one in zip(CLIENTS, made, strict=True)}
        weights = [own_weight(aggregation, n, one.factor) for n, one in zip(examples, made, strict=True)]
        assert [weight / sum(weights) for weight in weights] == pytest.approx(plain, abs=1e-5)


@pytest.mark.parametrize("weighting", FAIR)
def test_without_a_mean_the_factor_is_1_and_without_an_own_distance_it_is_that_of_the_mean(weighting: Any) -> None:
    aggregation = fair(weighting, 5.0)
    first = own_factor(aggregation, 0.7, None, None)
    assert first.factor == 1
    assert first.history == (0.7 if weighting == "adaptive" else None)
    assert own_factor(aggregation, None, None, 1.25) == own_factor(fair("uniform"), None, None, 1.25)
    assert own_factor(aggregation, None, MEAN, None).factor == 1
    assert own_factor(aggregation, None, MEAN, 1.25) == own_factor(aggregation, MEAN, MEAN, 1.25)


@pytest.mark.parametrize("weighting", FAIR)
@given(
    distance=st.none() | st.floats(0, 1e6),
    mean=st.none() | st.floats(0, 1e6),
    history=st.none() | st.floats(0.34, 2.9),
    fairness=st.floats(1e-6, 1e6),
    examples=st.integers(0, 10**7),
    most=st.integers(1, MAX_WEIGHT),
)
@settings(max_examples=25, deadline=None)
def test_no_distance_and_no_mean_moves_a_weight_out_of_its_bounds(
    weighting: Any,
    distance: float | None,
    mean: float | None,
    history: float | None,
    fairness: float,
    examples: int,
    most: int,
) -> None:
    aggregation = fair(weighting, fairness, most)
    made = own_factor(aggregation, distance, mean, history)
    assert 1 / MAX_FACTOR <= made.factor <= MAX_FACTOR
    least, whole = weight_bounds(aggregation)
    assert 1 <= least <= own_weight(aggregation, examples, made.factor) <= whole == WEIGHT_STEPS


@pytest.mark.parametrize("weighting", FAIR)
@pytest.mark.parametrize("members", [3, 8, MAX_MEMBERS])
@pytest.mark.parametrize("lie", [0.0, 0.83, 1e9])
def test_a_member_that_lies_about_its_distance_weighs_at_most_three_even_shares(
    weighting: Any, members: int, lie: float
) -> None:
    aggregation, history, factors = fair(weighting, 50.0), None, list[float]()
    for _ in range(5):
        made = own_factor(aggregation, lie, MEAN, history)
        history = made.history
        factors.append(made.factor)
    at_mean = own_weight(aggregation, 400, own_factor(aggregation, MEAN, MEAN, None).factor)
    for factor in factors:
        lying = own_weight(aggregation, 400, factor)
        assert at_mean / MAX_FACTOR - 1 <= lying <= at_mean * MAX_FACTOR + 2
        assert lying / (lying + (members - 1) * at_mean) <= 3 / members
    # With a false distance in the tail, it can also drag the others down: docs/private-rounds.md names this bound.
    least = own_weight(aggregation, 400, 1 / MAX_FACTOR)
    assert WEIGHT_STEPS / (WEIGHT_STEPS + (members - 1) * least) == pytest.approx(9 / (members + 8), abs=1e-5)


def test_weights_without_factors_are_numbers_of_examples() -> None:
    assert [own_weight(fair("examples"), n, 2.0) for n in (0, 30, 500)] == [1, 30, 400]
    assert own_weight(fair("uniform"), 30, 2.0) == 400
    assert weight_bounds(fair("uniform")) == weight_bounds(fair("examples")) == (1, 400)
    assert own_weight(fair("q_fair"), 100, 1.0) == round(WEIGHT_STEPS / 12)
    assert own_weight(fair("agnostic"), 100, 1.0) == own_weight(fair("adaptive"), 7, 1.0) == round(WEIGHT_STEPS / 3)


def test_the_weights_of_the_largest_cohort_cannot_overflow() -> None:
    assert MAX_MEMBERS * WEIGHT_STEPS < 2**32
