"""The noise has its distribution, by tests that also find noise which is too small, missing, or drawn twice."""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.gaussian_tests import SURE, failed_tests

from pluralllm.client.privacy.accountant import sigma_of
from pluralllm.client.privacy.mechanism import (
    LARGEST_COUNT,
    UNIT,
    Draw,
    noised_counts,
    opendp_draw,
    sensitivity,
)

pytestmark = pytest.mark.seconds

SAMPLE = 60_000
RHO = 0.02


def noise_of(draw: Draw) -> tuple[list[float], float]:
    """The noise that a draw adds to many equal counts, and the standard deviation that it should have."""
    counts = [500.0] * SAMPLE
    noised = noised_counts(counts, RHO, 1.0, draw)
    return [number - 500 for number in noised], sigma_of(RHO, sensitivity(SAMPLE, 1.0)) / UNIT


def gaussian(factor: float, times: int = 1) -> Draw:
    """A draw for controls: noise whose standard deviation is wrong by a factor, drawn so many times."""
    chance = random.Random(7)

    def draw(numbers: Sequence[int], sigma: float) -> list[int]:
        return [number + sum(round(chance.gauss(0, factor * sigma)) for _ in range(times)) for number in numbers]

    return draw


def test_the_noise_of_the_library_is_gaussian_and_new_in_each_draw() -> None:
    pytest.importorskip("opendp", reason="the extra `noise` is not installed")
    noise, sigma = noise_of(opendp_draw)
    assert failed_tests(noise, sigma) == set()
    assert all((number * UNIT).is_integer() for number in noise[:100])
    assert opendp_draw([0] * 8, 1e4) != opendp_draw([0] * 8, 1e4)


@pytest.mark.parametrize(
    ("draw", "failed"),
    [
        (gaussian(1.0), set()),
        (gaussian(0.98), {"variance"}),
        (gaussian(1.0, times=2), {"variance", "kolmogorov-smirnov", "chi-square"}),
        (gaussian(0.0), {"variance", "kolmogorov-smirnov", "chi-square"}),
    ],
    ids=["right", "2 % too small", "drawn twice", "left out"],
)
def test_the_tests_find_noise_that_is_wrong(draw: Draw, failed: set[str]) -> None:
    noise, sigma = noise_of(draw)
    found_wrong = failed_tests(noise, sigma)
    assert found_wrong >= failed
    assert bool(found_wrong) == bool(failed)


def test_the_tests_find_noise_that_is_used_twice() -> None:
    noise, sigma = noise_of(gaussian(1.0))
    again = [number for number in noise[: SAMPLE // 2] for _ in range(2)]
    assert "independence" in failed_tests(again, sigma)


WIDTH = 1.0  # sigma of the exact test: small, because whole numbers then differ much from rounded Gaussian numbers
LEAST_EXPECTED = 20  # in each bin of the chi-square test


def exact_chances(sigma: float) -> dict[int, float]:
    """The discrete Gaussian distribution itself: Canonne, Kamath, Steinke 2020 (arXiv 2004.00010), Definition 1."""
    reach = math.ceil(12 * sigma)
    weights = {x: math.exp(-x * x / (2 * sigma * sigma)) for x in range(-reach, reach + 1)}
    total = math.fsum(weights.values())
    return {x: weight / total for x, weight in weights.items()}


def failed_exact_tests(noise: Sequence[int], sigma: float) -> set[str]:
    """The tests that whole numbers fail as a sample of the discrete Gaussian distribution, at 1e-6 each."""
    chances, seen, size = exact_chances(sigma), Counter(noise), len(noise)
    variance = math.fsum(x * x * chance for x, chance in chances.items())
    fourth = math.fsum(x**4 * chance for x, chance in chances.items())
    failed = set()
    spread = math.fsum(x * x for x in noise) / size - variance
    if abs(spread) > SURE * math.sqrt((fourth - variance**2) / size):
        failed.add("variance")
    bins, expected, observed = [], 0.0, 0
    below, below_seen, distance = 0.0, 0.0, 0.0
    for x, chance in sorted(chances.items()):
        below, below_seen = below + chance, below_seen + seen[x] / size
        distance = max(distance, abs(below - below_seen))
        expected, observed = expected + chance * size, observed + seen[x]
        if expected >= LEAST_EXPECTED:
            bins.append((expected, observed))
            expected, observed = 0.0, 0
    bins[-1] = (bins[-1][0] + expected, bins[-1][1] + observed)
    if distance * math.sqrt(size) > math.sqrt(-math.log(1e-6 / 2) / 2):  # for whole numbers the chance is below 1e-6
        failed.add("kolmogorov-smirnov")
    chi_square, degrees = math.fsum((have - want) ** 2 / want for want, have in bins), len(bins) - 1
    if chi_square > degrees * (1 - 2 / (9 * degrees) + SURE * math.sqrt(2 / (9 * degrees))) ** 3:
        failed.add("chi-square")
    return failed


def exact_sample(sigma: float, seed: int) -> list[int]:
    chances = exact_chances(sigma)
    return random.Random(seed).choices(list(chances), weights=list(chances.values()), k=SAMPLE)


def test_the_noise_of_the_library_is_exactly_the_discrete_gaussian() -> None:
    pytest.importorskip("opendp", reason="the extra `noise` is not installed")
    assert failed_exact_tests(opendp_draw([0] * SAMPLE, WIDTH), WIDTH) == set()


@pytest.mark.parametrize(
    ("noise", "failed"),
    [
        (exact_sample(WIDTH, 1), set()),
        (exact_sample(0.98 * WIDTH, 2), {"variance", "chi-square"}),
        ([0] * SAMPLE, {"variance", "chi-square", "kolmogorov-smirnov"}),
        (
            [(one + other) // 2 for one, other in zip(exact_sample(WIDTH, 3), exact_sample(WIDTH, 4), strict=True)],
            {"variance", "chi-square", "kolmogorov-smirnov"},
        ),
        ([round(random.Random(number).gauss(0, WIDTH)) for number in range(SAMPLE)], {"variance", "chi-square"}),
    ],
    ids=["right", "2 % too small", "left out", "mean of two draws", "rounded numbers of another distribution"],
)
def test_the_exact_tests_find_noise_that_is_wrong(noise: Sequence[int], failed: set[str]) -> None:
    found_wrong = failed_exact_tests(noise, WIDTH)
    assert found_wrong >= failed
    assert bool(found_wrong) == bool(failed)


def whole_numbers(counts: Sequence[float]) -> list[int]:
    """The numbers that the mechanism hands to the draw."""
    seen: list[int] = []

    def draw(numbers: Sequence[int], _: float) -> list[int]:
        seen.extend(numbers)
        return list(numbers)

    noised_counts(counts, RHO, 1.0, draw)
    return seen


def difference(counts: Sequence[float], added: Sequence[float]) -> float:
    """How far one respondent moves the numbers of a question (L2)."""
    more = [math.fsum(pair) for pair in zip(counts, added, strict=True)]
    return math.dist(whole_numbers(counts), whole_numbers(more))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 5000), st.floats(0, 1)), min_size=2, max_size=12))
def test_nobody_moves_the_numbers_of_a_question_by_more_than_the_sensitivity(pairs: list[tuple[float, float]]) -> None:
    total = max(1.0, math.fsum(part for _, part in pairs))
    counts, added = [count for count, _ in pairs], [part / total for _, part in pairs]
    assert difference(counts, added) <= sensitivity(len(pairs), 1.0)


def test_the_sensitivity_includes_what_rounding_adds() -> None:
    almost_half, little = 0.49 / UNIT, 0.1 / UNIT  # each of five numbers is rounded up by one respondent's answers
    moved = difference([almost_half] * 5, [1 - 4 * little, *[little] * 4])
    assert UNIT < moved <= sensitivity(5, 1.0)


def test_a_split_answer_would_move_whole_answers_too_far() -> None:
    """In parts of 1/1024, a person with four answers is within the sensitivity; in whole answers it would be twice too much."""
    counts, quarter = [10.25] * 4, [0.25] * 4
    assert math.dist([math.floor(c + 0.5) for c in counts], [math.floor(c + 0.5) for c in [10.5] * 4]) == 2
    assert difference(counts, quarter) == UNIT / 2


def test_a_whole_answer_moves_one_number_by_one_unit() -> None:
    assert difference([3.0, 4.0], [0.0, 1.0]) == UNIT
    assert whole_numbers([0.5, 1.5 / UNIT, 2.5 / UNIT]) == [512, 2, 3]  # halves go up, never to the even number


def test_a_larger_weight_gets_more_noise() -> None:
    sigmas: list[float] = []

    def draw(numbers: Sequence[int], sigma: float) -> list[int]:
        sigmas.append(sigma)
        return list(numbers)

    for max_weight in (1.0, 3.0):
        noised_counts([5, 5], RHO, max_weight, draw)
    assert [round(sigma / UNIT, 1) for sigma in sigmas] == [5.0, 15.0]


@pytest.mark.parametrize("count", [-1.0, math.nan, LARGEST_COUNT * 2.0])
def test_a_count_that_cannot_be_is_refused_before_noise_is_drawn(count: float) -> None:
    never: Callable[..., list[int]] = lambda *_: pytest.fail("noise was drawn")  # noqa: E731
    with pytest.raises(ValueError, match="is not between"):
        noised_counts([1.0, count], RHO, 1.0, never)
