"""Summarises what a mean score hides: each method's alignment by number of options, and its calibration."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pluralllm.experiment.by_options import ClassScore, by_options, options_of
from pluralllm.experiment.calibration import calibration_of
from pluralllm.experiment.results import Result
from pluralllm.experiment.summary import Selection, methods_of


@dataclass(frozen=True, slots=True)
class Details:
    """Scores of one method by class of questions, and its calibration."""

    by_options: Mapping[str, ClassScore]  # by the name of the class; empty in results of earlier releases
    calibration: float | None  # observed / expected error; None if the method predicts no spread

    def plain(self) -> dict[str, Any]:
        """Returns the details as values for JSON."""
        scores = {name: asdict(score) for name, score in self.by_options.items()}
        return {"by_options": scores, "calibration": self.calibration}


def details_of(results: Sequence[Result], selection: Selection) -> dict[str, Details]:
    """Returns the details of every method, by the method's name."""
    options = options_of(results)
    details = {}
    for method, runs in methods_of(results).items():
        calibration = calibration_of(runs, selection)
        ratio = None if calibration is None else calibration.ratio
        details[method] = Details(by_options(runs, selection, options), ratio)
    return details
