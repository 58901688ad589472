"""The predicted spread is compared with the actual error."""

import numpy as np
import pytest

from pluralllm.experiment.calibration import calibration_of
from pluralllm.experiment.results import QuestionKind, Result, Scores
from pluralllm.experiment.summary import Selection


def made(confidence: float, loss: str = "gaussian", *, predicted: bool = True) -> Result:
    """Returns a result with Gaussian errors of known size; the predicted spreads are smaller by the factor `confidence`."""
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.05, 0.3, 20_000)
    error = np.abs(rng.normal(0, spread))
    log_std = np.log(spread / confidence) if predicted else np.full(spread.shape, np.nan)
    count = len(spread)
    numbers = np.arange(count)
    scores = Scores(
        "g", "test", 20, np.zeros(count, int), numbers, np.where(numbers % 2 == 0, "a", "u"), error, log_std, error
    )
    return Result({"method": "a", "seed": 0, "spec": {"training": {"loss": loss}}}, (), (scores,), ())


def test_errors_of_the_predicted_size_are_calibrated() -> None:
    calibration = calibration_of([made(1.0)], Selection())
    assert calibration is not None
    assert calibration.ratio == pytest.approx(1.0, abs=0.02)
    assert calibration.within == pytest.approx(0.683, abs=0.01)
    assert calibration.observed == pytest.approx(calibration.expected, rel=0.1)
    assert (np.diff(calibration.expected) > 0).all()


def test_spreads_that_are_too_small_show_as_a_ratio_above_one() -> None:
    calibration = calibration_of([made(2.0)], Selection())
    assert calibration is not None
    assert calibration.ratio == pytest.approx(2.0, rel=0.02)
    assert calibration.within == pytest.approx(0.383, abs=0.01)


def test_one_kind_of_question_can_be_looked_at_alone() -> None:
    found = calibration_of([made(1.0)], Selection(kinds=(QuestionKind.ANSWERED,)))
    assert found is not None
    assert found.questions == 10_000


def test_a_spread_that_is_not_predicted_is_not_judged() -> None:
    assert calibration_of([made(1.0, predicted=False)], Selection()) is None
