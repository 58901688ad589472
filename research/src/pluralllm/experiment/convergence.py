"""Alignment on the way, on every axis of cost, and when a threshold is reached. A bare "faster" means nothing: name the axis."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from pluralllm.common.predictor.metrics import coefficient_of_variation
from pluralllm.experiment.results import Floats, Result

Measure = Callable[[Sequence[float]], float]  # over the groups' scores of one point
NOT_REACHED = math.inf


@dataclass(frozen=True, slots=True)
class Curve:
    """One method's way on one axis; seeds that stopped at other places are brought to common ones. P: points."""

    x: Floats  # (P,)
    middle: Floats  # (P,) mean over seeds
    low: Floats  # (P,) lowest seed
    high: Floats  # (P,) highest seed
    seeds: int


@dataclass(frozen=True, slots=True)
class Reach:
    """When a method reaches a threshold on one axis. `NOT_REACHED` where the median seed does not."""

    median: float
    low: float  # over the seeds that reach it; NOT_REACHED if none does
    high: float
    reached: int  # seeds
    seeds: int


def mean_score(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)


def worst_score(scores: Sequence[float]) -> float:
    return min(scores)


def variation(scores: Sequence[float]) -> float:
    """Coefficient of variation: how unevenly the groups are served."""
    return coefficient_of_variation(scores)


def way_of(result: Result, axis: str, groups: Collection[str], measure: Measure) -> tuple[Floats, Floats] | None:
    """Cost and measure of each point that scores all these groups. None if there is no such point, or no cost on this axis:
    a central model has no rounds, and moves nothing."""
    points = [point for point in result.points if groups and set(groups) <= set(point.alignment)]
    if not points or not any(point.cost[axis] > 0 for point in points):
        return None
    x = np.array([point.cost[axis] for point in points])
    y = np.array([measure([point.alignment[group] for group in sorted(groups)]) for point in points])
    return x, y


def curve_of(runs: Sequence[Result], axis: str, groups: Collection[str], measure: Measure) -> Curve | None:
    """Over the seeds. Where every seed has the same costs these are the points; else (seconds) places spread evenly."""
    ways = [way for result in runs if (way := way_of(result, axis, groups, measure)) is not None]
    if not ways:
        return None
    first = ways[0][0]
    alike = all(x.shape == first.shape and np.allclose(x, first) for x, _ in ways)
    x = first if alike else np.linspace(0, min(float(x[-1]) for x, _ in ways), max(len(x) for x, _ in ways))
    y = np.array([np.interp(x, mine, values) for mine, values in ways])  # (seeds, P)
    return Curve(x, y.mean(0), y.min(0), y.max(0), len(ways))


def first_reach(x: Floats, y: Floats, threshold: float) -> float:
    """The first cost at which the way is at the threshold, on straight lines between points; NOT_REACHED if it never is."""
    above = np.flatnonzero(y >= threshold)
    if not above.size:
        return NOT_REACHED
    at = int(above[0])
    if at == 0:
        return float(x[0])
    share = (threshold - y[at - 1]) / (y[at] - y[at - 1])
    return float(x[at - 1] + share * (x[at] - x[at - 1]))


def reach_of(runs: Sequence[Result], axis: str, groups: Collection[str], threshold: float) -> Reach | None:
    """Over the seeds; None where the method has no cost on this axis."""
    ways = [way for result in runs if (way := way_of(result, axis, groups, mean_score)) is not None]
    if not ways:
        return None
    costs = sorted(first_reach(x, y, threshold) for x, y in ways)
    reached = [cost for cost in costs if cost < NOT_REACHED]
    lower, upper = costs[(len(costs) - 1) // 2], costs[len(costs) // 2]
    median = NOT_REACHED if upper == NOT_REACHED else (lower + upper) / 2
    low, high = (reached[0], reached[-1]) if reached else (NOT_REACHED, NOT_REACHED)
    return Reach(median, low, high, len(reached), len(costs))


def last_score(runs: Sequence[Result], groups: Collection[str]) -> float | None:
    """Mean over seeds of the mean alignment at the end of the way; None where there is no way."""
    ways = [way for result in runs if (way := way_of(result, "gradient_steps", groups, mean_score)) is not None]
    return float(np.mean([y[-1] for _, y in ways])) if ways else None
