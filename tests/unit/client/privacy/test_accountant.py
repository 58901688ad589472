"""The privacy loss is never below the exact one of Gaussian noise, and at most a tenth above it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluralllm.client.privacy.accountant import epsilon_of, rho_of, rho_of_question, rho_used, sigma_of

# Exact losses of noise on many questions and of several releases, by another library; support/privacy_oracle.py makes them.
ORACLE = json.loads((Path(__file__).parent / "exact_losses.json").read_text())


def stated(row: dict[str, Any]) -> float:
    """The epsilon that the accountant states for a row of the oracle: its releases add up their rho, question by question."""
    rho = math.fsum(questions / (2 * sigma**2) for sigma, questions in row["releases"])
    return epsilon_of(rho, row["delta"])


@pytest.mark.parametrize("row", ORACLE["rows"], ids=lambda row: f"{row['releases']} {row['delta']}")
def test_the_stated_loss_is_at_least_that_of_the_oracle_and_at_most_a_tenth_more(row: dict[str, Any]) -> None:
    assert row["at_least"] <= row["at_most"] <= row["at_least"] + 0.005
    assert row["at_most"] <= stated(row) <= 1.1 * row["at_least"]


def test_the_oracle_is_a_library_of_somebody_else_and_names_its_version() -> None:
    assert ORACLE["made_by"].startswith("dp-accounting 0.6.0")
    of_one_kind = [row for row in ORACLE["rows"] if len(row["releases"]) == 1]
    assert {questions for row in of_one_kind for _, questions in row["releases"]} == {1, 10, 50, 100, 300}
    assert min(row["at_least"] for row in ORACLE["rows"]) < 0.5
    assert max(row["at_most"] for row in ORACLE["rows"]) > 4


def normal(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


def exact_delta(rho: float, epsilon: float) -> float:
    """Delta of Gaussian noise, exact: Balle and Wang 2018 (arXiv 1805.06530), Theorem 8."""
    mu = math.sqrt(2 * rho)  # distance of two neighbours in standard deviations
    return normal(-epsilon / mu + mu / 2) - math.exp(epsilon) * normal(-epsilon / mu - mu / 2)


def exact_epsilon(rho: float, delta: float) -> float:
    low, high = 0.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if exact_delta(rho, middle) > delta else (low, middle)
    return high


def exact_delta_of_whole_numbers(rho: float, epsilon: float) -> float:
    """Delta of discrete Gaussian noise on one whole number that a person changes by 1: the sum over all outcomes."""
    variance = 1 / (2 * rho)
    outcomes = range(-math.ceil(40 * math.sqrt(variance)), math.ceil(40 * math.sqrt(variance)) + 1)
    weights = {x: math.exp(-x * x / (2 * variance)) for x in outcomes}
    total = math.fsum(weights.values())
    return math.fsum(max(0.0, weights[x] - math.exp(epsilon) * weights.get(x - 1, 0.0)) for x in outcomes) / total


@pytest.mark.parametrize("delta", [1e-6, 1e-9])
@pytest.mark.parametrize("epsilon", [0.5, 1, 2, 4, 8])
def test_epsilon_is_never_below_the_exact_one_and_at_most_a_tenth_above(epsilon: float, delta: float) -> None:
    rho = rho_of(epsilon, delta)
    assert epsilon * (1 - 1e-9) < epsilon_of(rho, delta) <= epsilon
    assert exact_epsilon(rho, delta) <= epsilon <= 1.1 * exact_epsilon(rho, delta)
    assert exact_delta_of_whole_numbers(rho, epsilon) <= delta


def test_the_oracle_finds_a_loss_that_is_stated_too_low() -> None:
    rho = rho_of(2, 1e-6)
    assert exact_epsilon(1.2 * rho, 1e-6) > 2
    assert exact_delta_of_whole_numbers(1.3 * rho, 2) > 1e-6


@pytest.mark.parametrize(("epsilon", "rho"), [(1, 0.0244), (2, 0.0882), (4, 0.311), (8, 1.052)])
def test_the_table_of_the_documentation(epsilon: float, rho: float) -> None:
    assert rho_of(epsilon, 1e-6) == pytest.approx(rho, rel=5e-3)


def test_no_release_tells_nothing() -> None:
    assert epsilon_of(0, 1e-6) == 0
    for rho, delta in ((-1, 1e-6), (1, 0), (1, 1), (math.nan, 1e-6)):
        with pytest.raises(ValueError, match="delta"):
            epsilon_of(rho, delta)


def test_the_questions_that_were_released_most_precisely_count() -> None:
    assert rho_used([0.1, 0.3, 0.2], kappa=2) == pytest.approx(0.5)
    assert rho_used([0.1, 0.3, 0.2], kappa=9) == pytest.approx(0.6)
    assert rho_used([], kappa=2) == 0


def test_a_first_release_divides_the_budget_among_the_questions_of_one_person() -> None:
    assert rho_of_question({}, ["a", "b", "c", "d"], kappa=2, budget=1.0) == pytest.approx(0.5)
    assert rho_of_question({}, ["a"], kappa=2, budget=1.0) == 1.0


def test_new_questions_cost_nothing_where_one_person_has_not_answered_more() -> None:
    assert rho_of_question({"a": 0.5, "b": 0.5}, ["c"], kappa=2, budget=1.0) == pytest.approx(0.5)
    assert rho_of_question({"a": 0.5, "b": 0.5}, ["c"], kappa=3, budget=1.0) < 1e-12
    assert rho_of_question({"a": 0.5, "b": 0.5}, ["a"], kappa=2, budget=1.0) < 1e-12


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 0.3), max_size=6),
    st.sets(st.sampled_from("abcdefgh"), min_size=1),
    st.integers(1, 9),
)
def test_no_release_goes_beyond_the_budget(totals: dict[str, float], names: set[str], kappa: int) -> None:
    rho = rho_of_question(totals, names, kappa, budget=1.0)
    after = totals | {name: totals.get(name, 0.0) + rho for name in names}
    if rho > 0:
        assert rho_used(after.values(), kappa) <= 1.0


def test_the_noise_has_the_stated_loss_and_not_more() -> None:
    assert 1 / (2 * sigma_of(0.02, sensitivity=1.0) ** 2) <= 0.02
    assert sigma_of(0.02, sensitivity=3.0) == pytest.approx(3 * 5)
