"""Whether the predicted spread is the error that is made."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pluralllm.experiment.results import Floats, Result
from pluralllm.experiment.summary import Selection, selected

BINS = 10


@dataclass(frozen=True, slots=True)
class Calibration:
    """Questions in bins of equal size by predicted standard deviation; expected and observed are root mean squares in a bin."""

    expected: Floats  # (bins,)
    observed: Floats  # (bins,)
    ratio: float  # observed over expected, of all questions: above 1 the predictor is too sure of itself
    within: float  # share of questions whose error is within the predicted standard deviation
    questions: int  # with draws and seeds counted


def calibration_of(runs: Sequence[Result], selection: Selection, bins: int = BINS) -> Calibration | None:
    """None where no spread is predicted.

    A question's spread is the root mean square of its options' predicted standard deviations, its error that of its options'.
    For Gaussian errors of the predicted size `within` would be 0.68 with one option and 0.58 with five.
    """
    spreads, errors = [], []
    for result in runs:
        for scores, mask in selected(result, selection):
            predicted = mask & np.isfinite(scores.log_std)
            spreads.append(np.exp(scores.log_std[predicted]))
            errors.append(scores.error[predicted])
    spread, error = (np.concatenate(found) if found else np.empty(0) for found in (spreads, errors))
    if not spread.size:
        return None
    parts = np.array_split(np.argsort(spread, kind="stable"), min(bins, spread.size))
    return Calibration(
        np.array([_root_mean_square(spread[part]) for part in parts]),
        np.array([_root_mean_square(error[part]) for part in parts]),
        _root_mean_square(error) / _root_mean_square(spread),
        float((error <= spread).mean()),
        int(spread.size),
    )


def _root_mean_square(values: Floats) -> float:
    return float(np.sqrt(np.mean(values**2)))
