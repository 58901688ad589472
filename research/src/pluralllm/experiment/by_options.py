"""Summarises scores by the number of options of a question: few options are easier to predict than many.

The numbers of options come from the results of an experiment. Results of earlier releases do not have them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pluralllm.experiment.results import Result
from pluralllm.experiment.summary import Selection, selected

# Name of a class, and the smallest number of options in it. A class ends before the next one.
CLASSES = (("2", 2), ("3", 3), ("4", 4), ("5", 5), ("6 to 8", 6), ("9 and more", 9))


@dataclass(frozen=True, slots=True)
class ClassScore:
    """Alignment score of one method over the questions of one class."""

    alignment: float  # 1 minus the mean distance
    questions: int  # number of scored questions; one counts again in each group, draw and seed


def options_of(results: Sequence[Result]) -> dict[int, int]:
    """Returns the number of options of each question, by the question's number, from all results of an experiment."""
    return {question: options for result in results for question, options in result.options.items()}


def by_options(runs: Sequence[Result], selection: Selection, options: Mapping[int, int]) -> dict[str, ClassScore]:
    """Returns a method's score for each class of questions, by the class's name; a class without scored questions is left out.

    runs: the method's results, one for each seed. options: number of options by question. Every scored question counts alike, in
    whichever group it is, because some groups have few questions of a class.
    """
    sums, counts = np.zeros(len(CLASSES)), np.zeros(len(CLASSES), dtype=np.int64)
    first = np.array([least for _, least in CLASSES])
    for result in runs:
        for scores, mask in selected(result, selection):
            questions, place = np.unique(scores.question[mask], return_inverse=True)
            sizes = np.array([options.get(question, 0) for question in questions.tolist()])[place]
            known = sizes >= first[0]
            at = np.searchsorted(first, sizes[known], side="right") - 1
            sums += np.bincount(at, scores.distance[mask][known], len(CLASSES))
            counts += np.bincount(at, minlength=len(CLASSES))
    return {
        name: ClassScore(1 - float(total) / int(count), int(count))
        for (name, _), total, count in zip(CLASSES, sums, counts, strict=True)
        if count
    }
