"""How well a prediction fits, for one question, one group and over the groups. numpy only: the coordinator reads these too.

Sources: arXiv 2503.09925 (alignment score, fairness index); Lin 1991 (Jensen-Shannon); Jain et al. 1984 (Jain's index).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Shares = Sequence[float] | NDArray[np.floating]
MAX_JS_DISTANCE = math.sqrt(math.log(2))  # between shares that have no option in common


def js_distance(predicted: Shares, true: Shares) -> float:
    """Jensen-Shannon distance (the square root), natural logarithm: 0 .. sqrt(ln 2). Base 2 is this over sqrt(ln 2).

    Raises ValueError for NaN, negative or all-zero shares: a distance that cannot be had is not a perfect one.
    """
    p, q = _distribution(predicted), _distribution(true)
    if p.shape != q.shape:
        raise ValueError(f"{p.size} shares predicted, {q.size} given")
    divergence = (_entropy_against_middle(p, q) + _entropy_against_middle(q, p)) / 2
    return min(MAX_JS_DISTANCE, math.sqrt(max(0.0, divergence)))


def js_distances(
    predicted: NDArray[np.floating], true: NDArray[np.floating], starts: NDArray[np.integer]
) -> NDArray[np.float64]:
    """`js_distance` of many questions at once: shares one question after another, (P,), and where each begins, (Q,) -> (Q,).

    Raises ValueError as `js_distance` does.
    """
    if predicted.shape != true.shape:
        raise ValueError(f"{predicted.size} shares predicted, {true.size} given")
    p, q = _distributions(predicted, starts), _distributions(true, starts)  # (P,)
    divergences = np.add.reduceat(_terms_against_middle(p, q) + _terms_against_middle(q, p), starts) / 2  # (Q,)
    distances: NDArray[np.float64] = np.minimum(MAX_JS_DISTANCE, np.sqrt(np.maximum(0.0, divergences)))
    return distances


def wasserstein_score(predicted: Shares, true: Shares, scale: Sequence[float | None]) -> float | None:
    """1 - W1 / max W1 over the options that are on the scale: 1 is perfect, 0 all at the wrong end.

    Options off the scale (refused) are left out on both sides and the rest is brought to sum 1. None if the question is not
    ordinal: fewer than two positions, or no true share on them. A prediction with nothing on the scale scores 0: what cannot
    be compared must not drop out of a mean.
    """
    on = [index for index, position in enumerate(scale) if position is not None]
    positions = np.array([scale[index] for index in on], dtype=np.float64)
    p, q = _distribution(predicted)[on], _distribution(true)[on]
    if len(set(positions.tolist())) < 2 or q.sum() <= 0:
        return None
    if p.sum() <= 0:
        return 0.0
    order = np.argsort(positions, kind="stable")
    gaps = np.diff(positions[order])
    distance = float(np.abs(np.cumsum(p[order] / p.sum() - q[order] / q.sum())[:-1]) @ gaps)
    return 1 - distance / float(positions.max() - positions.min())


@dataclass(frozen=True, slots=True)
class Alignment:
    """Scores of a group as a sum that can be merged: zero, add, result."""

    questions: int = 0
    js_total: float = 0.0  # natural-log distances
    ordinal_questions: int = 0
    wasserstein_total: float = 0.0

    def add(self, predicted: Shares, true: Shares, scale: Sequence[float | None] | None) -> "Alignment":
        """With one more question."""
        ordinal = None if scale is None else wasserstein_score(predicted, true, scale)
        return Alignment(
            self.questions + 1,
            self.js_total + js_distance(predicted, true),
            self.ordinal_questions + (ordinal is not None),
            self.wasserstein_total + (ordinal or 0.0),
        )

    @property
    def score(self) -> float:
        """Alignment score, natural logarithm: 1 is perfect, 1 - sqrt(ln 2) = 0.167 the worst."""
        return 1 - self._mean_distance

    @property
    def score_base2(self) -> float:
        """Alignment score, base 2: 1 is perfect, 0 the worst."""
        return max(0.0, 1 - self._mean_distance / MAX_JS_DISTANCE)

    @property
    def wasserstein(self) -> float | None:
        """Mean Wasserstein score of the ordinal questions; None if there are none."""
        return self.wasserstein_total / self.ordinal_questions if self.ordinal_questions else None

    @property
    def _mean_distance(self) -> float:
        if not self.questions:
            raise ValueError("no question was scored")
        return self.js_total / self.questions


def coefficient_of_variation(scores: Sequence[float]) -> float:
    """Standard deviation (of the population) over mean; 0 when all are equal."""
    values = np.asarray(scores, dtype=np.float64)
    if not values.size or not np.isfinite(values).all():
        raise ValueError("scores must be finite, at least one")
    mean = float(values.mean())
    return float(values.std()) / mean if mean else 0.0


def fairness_index(scores: Sequence[float]) -> float:
    """Group form: 1 / (1 + CoV^2) of the groups' scores, Jain's index; 1 is even, 1/n the worst."""
    return 1 / (1 + coefficient_of_variation(scores) ** 2)


def _distribution(shares: Shares) -> NDArray[np.float64]:
    values = np.asarray(shares, dtype=np.float64)
    if not np.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
        raise ValueError("shares must be finite, not negative and not all zero")
    normalized: NDArray[np.float64] = values / values.sum()
    return normalized


def _distributions(shares: NDArray[np.floating], starts: NDArray[np.integer]) -> NDArray[np.float64]:
    values = shares.astype(np.float64)  # (P,)
    totals = np.add.reduceat(values, starts)  # (Q,)
    if not np.isfinite(values).all() or (values < 0).any() or (totals <= 0).any():
        raise ValueError("shares must be finite, not negative and not all zero")
    normalized: NDArray[np.float64] = values / np.repeat(totals, np.diff(starts, append=values.size))
    return normalized


def _terms_against_middle(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each option adds to the relative entropy of p to (p + q) / 2."""
    terms: NDArray[np.float64] = np.zeros_like(p)
    seen = p > 0
    terms[seen] = p[seen] * np.log(2 * p[seen] / (p + q)[seen])
    return terms


def _entropy_against_middle(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Relative entropy of p to (p + q) / 2; halving here would lose the smallest shares to underflow."""
    seen = p > 0
    return float((p[seen] * np.log(2 * p[seen] / (p + q)[seen])).sum())
