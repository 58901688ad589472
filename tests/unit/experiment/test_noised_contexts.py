"""The ways to make shares of noised counts that the benchmark compares."""

import numpy as np
import pytest
from noised_contexts import WAYS

EXACT = [way for way in WAYS if "towards" not in way]  # the others mix in equal shares, whatever the noise is


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("noised", [(-50.0, -3.0, -8.0), (400.0, -30.0, 600.0), (1.0, 2.0)])
def test_each_way_gives_shares(way: str, noised: tuple[float, ...]) -> None:
    shares = WAYS[way](np.array(noised), 24.0)
    assert shares.sum() == pytest.approx(1)
    assert (shares >= 0).all()


@pytest.mark.parametrize("way", EXACT)
def test_with_little_noise_each_way_gives_the_shares_of_the_counts(way: str) -> None:
    assert WAYS[way](np.array([100.0, 250.0, 650.0]), 3.0) == pytest.approx([0.1, 0.25, 0.65], abs=0.006)
