"""From results to the table of methods: means over seeds, intervals by bootstrap over questions."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.metrics import coefficient_of_variation, fairness_index
from pluralllm.experiment.records import Record

RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Line:
    """One method on one part of the groups."""

    method: str
    seeds: int
    mean: Estimate  # over groups of their alignment scores
    worst: Estimate
    worst_group: str
    fairness: float
    variation: float


def table(results: Iterable[Sequence[Record]], part: str, context: int) -> list[Line]:
    """Each method's line, best first. The interval's percentiles are of resampled questions, each with all its draws and seeds.

    Source: Efron and Tibshirani 1993, chapter 13 (percentile interval).
    """
    by_method: dict[str, list[Sequence[Record]]] = defaultdict(list)
    for records in results:
        by_method[records[0]["method"]].append(records)
    lines = [line_of(method, runs, part, context) for method, runs in by_method.items()]
    return sorted((line for line in lines if line is not None), key=lambda line: -line.mean.value)


def line_of(method: str, runs: Sequence[Sequence[Record]], part: str, context: int) -> Line | None:
    """None where a method scores no group of this part."""
    distances = question_means(runs, part, context)
    if not distances:
        return None
    names = sorted(distances)
    scores = np.array([1 - values.mean() for values in (distances[name] for name in names)])
    rng = np.random.default_rng(0)
    resampled = np.array([_resample(distances, names, rng) for _ in range(RESAMPLES)])  # (RESAMPLES, groups)
    worst = int(np.argmin(scores))
    return Line(
        method,
        len(runs),
        _estimate(float(scores.mean()), resampled.mean(1)),
        _estimate(float(scores.min()), resampled.min(1)),
        names[worst],
        fairness_index(scores.tolist()),
        coefficient_of_variation(scores.tolist()),
    )


def question_means(runs: Sequence[Sequence[Record]], part: str, context: int) -> dict[str, NDArray[np.float64]]:
    """For each group of the part its questions' distances, each the mean over the draws and seeds it was a target in."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for records in runs:
        for record in records:
            if record["kind"] == "final" and record["part"] == part and record["context"] == context:
                for draw in record["draws"]:
                    for question, _, distance, *_ in draw:
                        found[record["group"]][question].append(distance)
    return {group: np.array([np.mean(d) for d in questions.values()]) for group, questions in found.items()}


def _resample(distances: dict[str, NDArray[np.float64]], names: Sequence[str], rng: np.random.Generator) -> list[float]:
    return [
        1 - float(distances[name][rng.integers(0, len(distances[name]), len(distances[name]))].mean()) for name in names
    ]


def _estimate(value: float, resampled: NDArray[np.float64]) -> Estimate:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))
