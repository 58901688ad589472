"""Curves over seeds, and the first moment at which they reach a threshold."""

from collections.abc import Sequence

import numpy as np
import pytest

from pluralllm.experiment.convergence import (
    NOT_REACHED,
    curve_of,
    first_reach,
    last_score,
    mean_score,
    reach_of,
    worst_score,
)
from pluralllm.experiment.results import AXES, Point, Result

GROUPS = ("g", "h")


def curve_result(scores: Sequence[float], seed: int = 0, *, rounds: int = 1, seconds: float = 1.0) -> Result:
    """Returns a result with a point every 10 gradient steps; group h is 0.1 below the mean score, group g 0.1 above it."""
    points = tuple(
        Point(
            dict(
                zip(
                    AXES,
                    (number * rounds, number * 10, number * 80, number * rounds * 100, number * seconds),
                    strict=True,
                )
            ),
            {"g": score + 0.1, "h": score - 0.1},
        )
        for number, score in enumerate(scores)
    )
    return Result({"method": "a", "seed": seed}, points, (), ())


def test_a_threshold_between_two_points_is_on_the_line_between_them() -> None:
    x, y = np.array([0.0, 10.0, 20.0]), np.array([0.5, 0.7, 0.8])
    assert first_reach(x, y, 0.6) == pytest.approx(5.0)
    assert first_reach(x, y, 0.8) == pytest.approx(20.0)
    assert first_reach(x, y, 0.4) == 0.0
    assert first_reach(x, y, 0.81) == NOT_REACHED


def test_the_first_time_counts_also_where_it_falls_back() -> None:
    assert first_reach(np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.5, 0.7, 0.5, 0.9]), 0.7) == pytest.approx(1.0)


def test_median_and_range_are_over_seeds() -> None:
    runs = [curve_result([0.5, 0.6, 0.7], 0), curve_result([0.5, 0.7, 0.8], 1), curve_result([0.5, 0.65, 0.7], 2)]
    reach = reach_of(runs, "gradient_steps", GROUPS, 0.6)
    assert reach is not None
    assert (reach.low, reach.median, reach.high) == pytest.approx((5.0, 100 / 15, 10.0))
    assert (reach.reached, reach.seeds) == (3, 3)


def test_seeds_that_do_not_reach_it_count() -> None:
    runs = [curve_result([0.5, 0.7], 0), curve_result([0.5, 0.55], 1), curve_result([0.5, 0.56], 2)]
    reach = reach_of(runs, "rounds", GROUPS, 0.6)
    assert reach is not None
    assert (reach.median, reach.reached) == (NOT_REACHED, 1)
    assert reach.low == pytest.approx(0.5)
    nobody = reach_of(runs, "rounds", GROUPS, 0.9)
    assert nobody is not None
    assert (nobody.reached, nobody.low) == (0, NOT_REACHED)


def test_a_central_model_has_no_rounds() -> None:
    runs = [curve_result([0.5, 0.7], rounds=0)]
    assert reach_of(runs, "rounds", GROUPS, 0.6) is None
    assert curve_of(runs, "moved_bytes", GROUPS, mean_score) is None
    assert curve_of(runs, "gradient_steps", GROUPS, mean_score) is not None


def test_groups_that_are_not_scored_have_no_curve() -> None:
    assert curve_of([curve_result([0.5, 0.7])], "rounds", ("unknown",), mean_score) is None
    assert curve_of([curve_result([0.5, 0.7])], "rounds", (), mean_score) is None
    assert last_score([Result({"method": "a", "seed": 0}, (), (), ())], GROUPS) is None


def test_a_band_goes_from_the_lowest_to_the_highest_seed() -> None:
    curve = curve_of([curve_result([0.5, 0.6], 0), curve_result([0.5, 0.8], 1)], "rounds", GROUPS, worst_score)
    assert curve is not None
    assert (curve.low[-1], curve.middle[-1], curve.high[-1]) == pytest.approx((0.5, 0.6, 0.7))
    assert curve.seeds == 2


def test_seeds_that_took_other_times_are_brought_to_common_ones() -> None:
    curve = curve_of(
        [curve_result([0.5, 0.6, 0.7], 0, seconds=1), curve_result([0.5, 0.6, 0.7], 1, seconds=2)],
        "seconds",
        GROUPS,
        mean_score,
    )
    assert curve is not None
    assert curve.x.tolist() == [0, 1, 2]
    assert curve.middle == pytest.approx([0.5, 0.575, 0.65])


def test_the_last_score_is_the_mean_over_seeds() -> None:
    assert last_score([curve_result([0.5, 0.6], 0), curve_result([0.5, 0.7], 1)], GROUPS) == pytest.approx(0.65)
