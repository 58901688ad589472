"""Measures alignment during training against each axis of cost, and the cost at which a threshold is reached.

The axes of cost are rounds, gradient steps, episodes, bytes moved and seconds. A method is called faster only on a
named axis.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from pluralllm.common.predictor.metrics import coefficient_of_variation
from pluralllm.experiment.results import Floats, Result

Measure = Callable[[Sequence[float]], float]  # combines the groups' scores at one point into one number
NOT_REACHED = math.inf


@dataclass(frozen=True, slots=True)
class Curve:
    """A measure of the groups' scores, such as their mean, against one axis of cost, over all seeds of a method.

    If the seeds were scored at different costs, their measures are interpolated to common costs. P is the number of points.
    """

    x: Floats  # (P,) cost
    middle: Floats  # (P,) mean over seeds
    low: Floats  # (P,) lowest seed
    high: Floats  # (P,) highest seed
    seeds: int


@dataclass(frozen=True, slots=True)
class Reach:
    """Cost on one axis at which a method reaches a threshold of mean alignment, over all seeds of the method."""

    median: float  # NOT_REACHED if the median seed does not reach the threshold
    low: float  # over the seeds that reach it; NOT_REACHED if none does
    high: float
    reached: int  # number of seeds that reach it
    seeds: int


def mean_score(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)


def worst_score(scores: Sequence[float]) -> float:
    return min(scores)


def variation(scores: Sequence[float]) -> float:
    """Coefficient of variation of the groups' scores: 0 if the predictor fits all groups equally well."""
    return coefficient_of_variation(scores)


def points_of(result: Result, axis: str, groups: Collection[str], measure: Measure) -> tuple[Floats, Floats] | None:
    """Returns the costs and the measures of all moments of training at which every group in `groups` was scored.

    axis: the axis of cost, such as rounds. measure: combines the groups' scores at one moment into one number.
    Returns None if there is no such moment, or if the method has no cost on this axis. For example, a model that is trained
    in one place has no rounds and moves no bytes.
    """
    points = [point for point in result.points if groups and set(groups) <= set(point.alignment)]
    if not points or not any(point.cost[axis] > 0 for point in points):
        return None
    x = np.array([point.cost[axis] for point in points])
    y = np.array([measure([point.alignment[group] for group in sorted(groups)]) for point in points])
    return x, y


def curve_of(runs: Sequence[Result], axis: str, groups: Collection[str], measure: Measure) -> Curve | None:
    """Returns a method's curve of the measure against one axis of cost; None if no seed was scored on this axis.

    runs: the method's results, one for each seed. measure: combines the groups' scores at one moment into one number.
    If every seed has the same costs, the curve has points at these costs. If the seeds' costs differ, as they do on the axis of
    seconds, the curve has evenly spaced points.
    """
    seed_points = [points for result in runs if (points := points_of(result, axis, groups, measure)) is not None]
    if not seed_points:
        return None
    first = seed_points[0][0]
    alike = all(x.shape == first.shape and np.allclose(x, first) for x, _ in seed_points)
    x = (
        first
        if alike
        else np.linspace(0, min(float(x[-1]) for x, _ in seed_points), max(len(x) for x, _ in seed_points))
    )
    y = np.array([np.interp(x, costs, values) for costs, values in seed_points])  # (seeds, P)
    return Curve(x, y.mean(0), y.min(0), y.max(0), len(seed_points))


def first_reach(x: Floats, y: Floats, threshold: float) -> float:
    """Returns the lowest cost at which a measure reaches the threshold, or NOT_REACHED if no cost is enough.

    x: costs in rising order. y: the measure at each cost. Between two costs, the measure is interpolated linearly.
    """
    above = np.flatnonzero(y >= threshold)
    if not above.size:
        return NOT_REACHED
    at = int(above[0])
    if at == 0:
        return float(x[0])
    share = (threshold - y[at - 1]) / (y[at] - y[at - 1])
    return float(x[at - 1] + share * (x[at] - x[at - 1]))


def reach_of(runs: Sequence[Result], axis: str, groups: Collection[str], threshold: float) -> Reach | None:
    """Returns the cost on one axis, such as rounds, at which a method's mean alignment over `groups` reaches the threshold.

    runs: the method's results, one for each seed. Returns None if the method has no cost on this axis.
    """
    seed_points = [points for result in runs if (points := points_of(result, axis, groups, mean_score)) is not None]
    if not seed_points:
        return None
    costs = sorted(first_reach(x, y, threshold) for x, y in seed_points)
    reached = [cost for cost in costs if cost < NOT_REACHED]
    lower, upper = costs[(len(costs) - 1) // 2], costs[len(costs) // 2]
    median = NOT_REACHED if upper == NOT_REACHED else (lower + upper) / 2
    low, high = (reached[0], reached[-1]) if reached else (NOT_REACHED, NOT_REACHED)
    return Reach(median, low, high, len(reached), len(costs))


def last_score(runs: Sequence[Result], groups: Collection[str]) -> float | None:
    """Returns the mean alignment over `groups` at the end of training, averaged over the seeds.

    runs: a method's results, one for each seed. Returns None if there is no moment at which all these groups were scored.
    """
    seed_points = [
        points for result in runs if (points := points_of(result, "gradient_steps", groups, mean_score)) is not None
    ]
    return float(np.mean([y[-1] for _, y in seed_points])) if seed_points else None
