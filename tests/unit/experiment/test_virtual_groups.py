"""The virtual groups of benchmarks/growth.py: drawn around real ones, by a seed."""

import numpy as np
from growth import virtual_groups
from support.small_survey import small_group

REAL = {"a": small_group("a", seed=1), "b": small_group("b", questions=40, seed=2)}


def test_each_virtual_group_has_the_questions_of_a_real_one_and_shares_around_its_shares() -> None:
    drawn = virtual_groups(REAL, 400, 50.0, seed=0)
    assert [len(drawn[f"virtual {number}"].questions) for number in (0, 1, 2)] == [
        len(REAL[name].questions) for name in ("a", "b", "a")
    ]
    assert {data.group for data in drawn.values()} == set(drawn)
    shares = np.array([drawn[f"virtual {number}"].shares for number in range(0, 400, 2)])  # (200, P)
    starts = REAL["a"].offsets[:-1]
    assert np.allclose(np.add.reduceat(shares, starts, axis=1), 1, atol=1e-5)
    assert (shares >= 0).all()
    expected = REAL["a"].shares
    assert np.abs(shares.mean(0) - expected).max() < 0.03
    assert np.allclose(shares.std(0), np.sqrt(expected * (1 - expected) / 51), atol=0.02), "as among 50 people"


def test_a_virtual_group_depends_on_seed_and_number_alone() -> None:
    few, many = virtual_groups(REAL, 3, 50.0, seed=0), virtual_groups(REAL, 9, 50.0, seed=0)
    assert all(np.array_equal(few[name].shares, many[name].shares) for name in few)
    assert not np.array_equal(few["virtual 0"].shares, few["virtual 2"].shares)
    assert not np.array_equal(few["virtual 0"].shares, virtual_groups(REAL, 1, 50.0, seed=1)["virtual 0"].shares)
