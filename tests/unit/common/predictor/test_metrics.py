import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluralllm.common.predictor.metrics import (
    Alignment,
    coefficient_of_variation,
    fairness_index,
    js_distance,
    js_distances,
    wasserstein_score,
)

FARTHEST = math.sqrt(math.log(2))
SCALE = (1.0, 2.0, 4.0)


def distributions(size: int) -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(0, 1), min_size=size, max_size=size).filter(lambda shares: sum(shares) > 0.01)


two_distributions = st.integers(2, 8).flatmap(lambda size: st.tuples(distributions(size), distributions(size)))


@pytest.mark.parametrize(
    ("predicted", "true", "expected"),
    [
        ([0.2, 0.8], [0.2, 0.8], 0),
        ([1, 0], [0, 1], FARTHEST),
        ([0.5, 0.5], [1, 0], math.sqrt(0.75 * math.log(4 / 3))),
        ([2, 2], [1, 0], math.sqrt(0.75 * math.log(4 / 3))),  # scaled to the sum 1
    ],
)
def test_js_distance_by_hand(predicted: list[float], true: list[float], expected: float) -> None:
    assert js_distance(predicted, true) == pytest.approx(expected, abs=1e-12)


@given(two_distributions)
def test_js_distance_is_symmetric_and_within_its_bounds(pair: tuple[list[float], list[float]]) -> None:
    found = js_distance(*pair)
    assert 0 <= found <= FARTHEST + 1e-12
    assert found == pytest.approx(js_distance(pair[1], pair[0]), abs=1e-9)


@pytest.mark.parametrize("broken", [[math.nan, 1.0], [math.inf, 1.0], [-0.1, 1.1], [0.0, 0.0], [0.2, 0.3, 0.5]])
def test_a_prediction_that_is_no_distribution_is_an_error_and_not_perfect(broken: list[float]) -> None:
    """PAPER's defect 6: a NaN distance counts as a perfect prediction."""
    with pytest.raises(ValueError, match="shares"):
        js_distance(broken, [0.5, 0.5])
    with pytest.raises(ValueError, match="shares"):
        Alignment().add(broken, [0.5, 0.5], None)


@given(st.lists(two_distributions, min_size=1, max_size=5))
def test_many_questions_at_once_have_the_distances_they_have_alone(
    pairs: list[tuple[list[float], list[float]]],
) -> None:
    starts = np.cumsum([0, *(len(predicted) for predicted, _ in pairs[:-1])])
    predicted, true = (np.concatenate([np.array(pair[side]) for pair in pairs]) for side in (0, 1))
    alone = [js_distance(*pair) for pair in pairs]
    # A distance is a square root: near 0, a rounding error of 1e-16 below the root becomes 1e-8.
    assert js_distances(predicted, true, starts).tolist() == pytest.approx(alone, abs=1e-7)


@pytest.mark.parametrize("broken", [[math.nan, 1.0], [-0.1, 1.1], [0.0, 0.0], [0.5]])
def test_one_broken_question_among_many_is_an_error(broken: list[float]) -> None:
    predicted = np.array([0.5, 0.5, *broken])
    with pytest.raises(ValueError, match="shares"):
        js_distances(predicted, np.array([0.5, 0.5, 0.5, 0.5]), np.array([0, 2]))


def test_the_worst_alignment_is_0167_natural_and_0_in_base_2() -> None:
    worst = Alignment().add([1, 0], [0, 1], None).add([0, 0, 1], [0.5, 0.5, 0], None)
    assert worst.score == pytest.approx(1 - FARTHEST) == pytest.approx(0.167, abs=5e-4)
    assert worst.score_base2 == pytest.approx(0, abs=1e-12)
    best = Alignment().add([0.3, 0.7], [0.3, 0.7], None)
    assert (best.score, best.score_base2) == (1, 1)


def test_alignment_is_one_minus_the_mean_distance() -> None:
    total = Alignment().add([0.5, 0.5], [1, 0], None).add([0.5, 0.5], [0.5, 0.5], None)
    mean = math.sqrt(0.75 * math.log(4 / 3)) / 2
    assert total.questions == 2
    assert total.score == pytest.approx(1 - mean)
    assert total.score_base2 == pytest.approx(1 - mean / FARTHEST)
    assert total.wasserstein is None


def test_wasserstein_scores_are_averaged_over_the_ordinal_questions_alone() -> None:
    total = Alignment().add([0.5, 0.5], [0.25, 0.75], None).add([1, 0, 0], [0, 1, 0], SCALE)
    total = total.add([1, 0, 0], [0, 0, 1], SCALE)
    assert (total.questions, total.ordinal_questions) == (3, 2)
    assert total.wasserstein == pytest.approx(1 / 3)  # the mean of 2/3 and 0


def test_nothing_scored_is_an_error_and_not_perfect() -> None:
    with pytest.raises(ValueError, match="no question"):
        _ = Alignment().score


@pytest.mark.parametrize(
    ("predicted", "true", "scale", "expected"),
    [
        ([1, 0, 0], [1, 0, 0], SCALE, 1),
        ([1, 0, 0], [0, 0, 1], SCALE, 0),
        ([1, 0, 0], [0, 1, 0], SCALE, 2 / 3),  # one of three units of the scale
        ([0, 0, 1], [0, 1, 0], SCALE, 1 / 3),  # the distance between positions counts, not their rank
        ([0.5, 0.5, 0], [0, 0.5, 0.5], (3.0, 2.0, 1.0), 0.5),  # the scale falls
        (
            [0.25, 0.25, 0.5],
            [0.8, 0, 0.2],
            (0.0, 1.0, None),
            0.5,
        ),  # (0.5, 0.5) against (1, 0); the last option is not on the scale
        (
            [0, 0, 1],
            [0.5, 0.3, 0.2],
            (0.0, 1.0, None),
            0,
        ),  # only the refused option is predicted: neither perfect nor left out
    ],
)
def test_wasserstein_score_by_hand(
    predicted: list[float], true: list[float], scale: tuple[float | None, ...], expected: float
) -> None:
    assert wasserstein_score(predicted, true, scale) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("scale", [(None, None, 1.0), (2.0, 2.0, None), (1.0, 2.0, None)])
def test_a_question_that_is_not_ordinal_has_no_wasserstein_score(scale: tuple[float | None, ...]) -> None:
    assert wasserstein_score([0.2, 0.3, 0.5], [0, 0, 1], scale) is None


@given(two_distributions)
def test_wasserstein_score_is_within_0_and_1(pair: tuple[list[float], list[float]]) -> None:
    found = wasserstein_score(*pair, [float(position) for position in range(len(pair[0]))])
    assert found is not None
    assert -1e-9 <= found <= 1


@pytest.mark.parametrize(
    ("scores", "variation", "index"),
    [([0.7, 0.7, 0.7], 0, 1), ([0.6, 0.8], 1 / 7, 0.98), ([1.0, 0.0, 0.0], math.sqrt(2), 1 / 3), ([0.4], 0, 1)],
)
def test_fairness_over_groups_by_hand(scores: list[float], variation: float, index: float) -> None:
    assert coefficient_of_variation(scores) == pytest.approx(variation, abs=1e-12)
    assert fairness_index(scores) == pytest.approx(index)


def test_fairness_index_is_jains() -> None:
    scores = np.random.default_rng(0).random(7)
    assert fairness_index(scores.tolist()) == pytest.approx(scores.sum() ** 2 / (7 * (scores**2).sum()))


@pytest.mark.parametrize("scores", [[], [0.5, math.nan]])
def test_fairness_of_nothing_or_of_nan_is_an_error(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        fairness_index(scores)
