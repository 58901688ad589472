"""Measures calibration: whether the predicted spread is as large as the error that the predictor makes.

The spread of an option is the standard deviation that the predictor states for its share.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pluralllm.experiment.results import Floats, Result
from pluralllm.experiment.summary import Selection, selected

BINS = 10


@dataclass(frozen=True, slots=True)
class Calibration:
    """Expected and observed error of questions, which are sorted by predicted spread into bins of equal size.

    Each value of a bin is the root mean square over the questions of the bin.
    """

    expected: Floats  # (bins,) predicted standard deviation
    observed: Floats  # (bins,) error
    ratio: float  # observed / expected over all questions; above 1 the predictor is too sure of itself
    within: float  # share of questions whose error is within the predicted standard deviation
    questions: int  # number of scored questions; one counts again in each draw and seed


def calibration_of(runs: Sequence[Result], selection: Selection, bins: int = BINS) -> Calibration | None:
    """Returns the calibration of one method over the selected questions; None if the method predicts no spread.

    runs: the method's results, one for each seed. bins: number of bins. A question's spread is the root mean square of the
    standard deviations predicted for its options. A question's error is the root mean square of the options' errors.
    The field `within` is the share of questions whose error is at most their spread.
    If errors were Gaussian with the predicted deviation, `within` would be 0.68 for questions with one option and 0.58 for
    questions with five options.
    """
    spreads, errors = [], []
    for result in runs:
        for scores, mask in selected(result, selection):
            predicted = mask & np.isfinite(scores.log_std)
            spreads.append(np.exp(scores.log_std[predicted]))
            errors.append(scores.error[predicted])
    spread, error = (np.concatenate(arrays) if arrays else np.empty(0) for arrays in (spreads, errors))
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
