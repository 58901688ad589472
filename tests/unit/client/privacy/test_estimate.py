"""The shares that are made of noised counts: they add up, follow precise counts, and have the smaller error in logarithms."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from pluralllm.client.privacy.estimate import likely_shares

PEOPLE, SIGMA = 1000, 24.0  # as for epsilon 2, 1,000 people and 100 questions of one person


@pytest.mark.parametrize("counts", [(3.0, 0.0, 997.0), (250.0, 750.0), (100.0,) * 10])
def test_with_little_noise_the_shares_are_those_of_the_counts(counts: tuple[float, ...]) -> None:
    total = sum(counts)
    assert likely_shares(counts, 0.01) == pytest.approx([count / total for count in counts], abs=1e-4)


@pytest.mark.parametrize(
    "noised", [(-50.0, -3.0), (0.0, 0.0), (1e-9, -1e-9, 0.0), (5000.0, -3000.0, 10.0), (-1e6, 1e6)]
)
def test_any_counts_and_any_noise_give_shares(noised: tuple[float, ...]) -> None:
    for sigma in (1e-6, 24.0, 1e7):
        shares = likely_shares(noised, sigma)
        assert sum(shares) == pytest.approx(1)
        assert all(0 <= share <= 1 for share in shares)


def test_noise_alone_gives_nearly_equal_shares() -> None:
    assert likely_shares((40.0, -30.0, 5.0), 1e6) == pytest.approx([1 / 3] * 3, abs=0.01)


def test_the_shares_keep_the_order_of_the_noised_counts() -> None:
    shares = likely_shares((-60.0, -20.0, 0.0, 20.0, 300.0, 700.0), SIGMA)
    assert list(shares) == sorted(set(shares))
    assert shares[5] == pytest.approx(0.7, abs=0.03)


def test_small_shares_are_nearer_to_the_true_ones_in_the_logarithm_that_predictors_read() -> None:
    chance = np.random.default_rng(1)
    estimated, clipped = 0.0, 0.0
    for true in chance.dirichlet([0.3] * 5, 300):
        noised = PEOPLE * true + chance.normal(0, SIGMA, 5)
        estimated += error(np.array(likely_shares(noised.tolist(), SIGMA)), true)
        clipped += error(noised.clip(0) / noised.clip(0).sum(), true)
    assert estimated < 0.9 * clipped


def error(shares: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    """The squared error of log(share + 0.01)."""
    return float(np.sum(np.log((shares + 0.01) / (true + 0.01)) ** 2))


def test_the_estimate_is_the_posterior_mean_of_the_logarithm() -> None:
    """Compared with a fine sum over shares: the prior is 1 / (share + 0.003)."""
    noised = (10.0, 400.0, 590.0)
    shares = np.linspace(0, 1, 200_001)
    means = []
    for x in noised:
        weights = np.exp(-0.5 * ((shares - x / 1000) / (SIGMA / 1000)) ** 2) / (shares + 0.003)
        means.append(math.exp(np.sum(weights * np.log(shares + 0.003)) / np.sum(weights)) - 0.003)
    assert likely_shares(noised, SIGMA) == pytest.approx([mean / sum(means) for mean in means], rel=0.01)
