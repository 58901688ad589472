"""Measures how well predictions fit the true answers of a question and of a group, and how even the groups' scores are.

This module uses only numpy, because the coordinator also computes fairness and has no torch.
Sources: arXiv 2503.09925 (alignment score, fairness index); Lin 1991 (Jensen-Shannon); Jain et al. 1984 (Jain's index).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Shares = Sequence[float] | NDArray[np.floating]
MAX_JS_DISTANCE = math.sqrt(math.log(2))  # the distance between shares that have no option in common


def js_distance(predicted: Shares, true: Shares) -> float:
    """Jensen-Shannon distance between predicted and true shares: 0 (equal shares) .. sqrt(ln 2) (no option in common).

    The distance is the square root of the divergence, with natural logarithms. The distance divided by sqrt(ln 2) is the
    distance with logarithms to base 2. Shapes: predicted (options,), true (options,); each array is scaled to sum 1 first.
    Raises ValueError if the arrays have different lengths, or if shares are NaN, negative or all 0. Such shares have no distance,
    and a result of 0 would mean a perfect prediction.
    """
    p, q = _distribution(predicted), _distribution(true)
    if p.shape != q.shape:
        raise ValueError(f"{p.size} shares predicted, {q.size} given")
    divergence = (_entropy_against_middle(p, q) + _entropy_against_middle(q, p)) / 2
    return min(MAX_JS_DISTANCE, math.sqrt(max(0.0, divergence)))


def js_distances(
    predicted: NDArray[np.floating], true: NDArray[np.floating], starts: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Jensen-Shannon distances between the predicted and the true shares of many questions, one distance for each question.

    Shapes: Q questions with P options in all; predicted (P,), true (P,), starts (Q,) -> (Q,). `predicted` and `true` hold the
    options of all questions, one question after another. starts: the index of each question's first option in these arrays.
    Raises ValueError if `predicted` and `true` have different lengths, or if a question's shares are NaN, negative or all 0.
    """
    if predicted.shape != true.shape:
        raise ValueError(f"{predicted.size} shares predicted, {true.size} given")
    p, q = _distributions(predicted, starts), _distributions(true, starts)  # (P,)
    divergences = np.add.reduceat(_terms_against_middle(p, q) + _terms_against_middle(q, p), starts) / 2  # (Q,)
    distances: NDArray[np.float64] = np.minimum(MAX_JS_DISTANCE, np.sqrt(np.maximum(0.0, divergences)))
    return distances


def wasserstein_score(predicted: Shares, true: Shares, scale: Sequence[float | None]) -> float | None:
    """Wasserstein score of a question whose options are ordered: 1 is perfect, 0 means that all shares are at the wrong end.

    The score is 1 - W1 / greatest possible W1, where W1 is the Wasserstein-1 distance between predicted and true shares.
    scale: position of each option on the scale; None for an option that is not on the scale (for example "refused"). Options
    that are not on the scale are left out. The other predicted shares, and the other true shares, are scaled to sum 1.
    Returns None if the options have fewer than two different positions, or if no true share is on the scale. Returns 0 if no
    predicted share is on the scale, so that such a bad prediction still counts in a mean.
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
    """The scores of one group, as sums over the group's questions. Begin with Alignment() and call `add` for each question."""

    questions: int = 0
    js_total: float = 0.0  # sum of the Jensen-Shannon distances, natural logarithm
    ordinal_questions: int = 0
    wasserstein_total: float = 0.0  # sum over the ordinal questions

    def add(self, predicted: Shares, true: Shares, scale: Sequence[float | None] | None) -> "Alignment":
        """Returns new sums that include one more question.

        Shapes: predicted, true and scale (options,). scale: the position of each option on the question's scale, or None for
        an option that is not on the scale. The whole argument is None if the question has no scale.
        """
        ordinal = None if scale is None else wasserstein_score(predicted, true, scale)
        return Alignment(
            self.questions + 1,
            self.js_total + js_distance(predicted, true),
            self.ordinal_questions + (ordinal is not None),
            self.wasserstein_total + (ordinal or 0.0),
        )

    @property
    def score(self) -> float:
        """Alignment score, 1 - mean Jensen-Shannon distance with natural logarithms: 1 is perfect, 0.167 is the worst.

        The worst score is 1 - sqrt(ln 2).
        """
        return 1 - self._mean_distance

    @property
    def score_base2(self) -> float:
        """Alignment score, 1 - mean Jensen-Shannon distance with logarithms to base 2: 1 is perfect, 0 is the worst."""
        return max(0.0, 1 - self._mean_distance / MAX_JS_DISTANCE)

    @property
    def wasserstein(self) -> float | None:
        """Mean Wasserstein score of the questions with ordered options, 0 .. 1; None if the group has no such question."""
        return self.wasserstein_total / self.ordinal_questions if self.ordinal_questions else None

    @property
    def _mean_distance(self) -> float:
        if not self.questions:
            raise ValueError("no question was scored")
        return self.js_total / self.questions


def coefficient_of_variation(scores: Sequence[float]) -> float:
    """Coefficient of variation: the scores' standard deviation divided by their mean; 0 when all scores are equal.

    For n scores, the standard deviation is computed with the divisor n, not n - 1.
    Raises ValueError if there is no score, or if a score is not finite.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not values.size or not np.isfinite(values).all():
        raise ValueError("scores must be finite, at least one")
    mean = float(values.mean())
    return float(values.std()) / mean if mean else 0.0


def fairness_index(scores: Sequence[float]) -> float:
    """Fairness index of the scores of n groups: Jain's index, 1 / (1 + CoV^2). 1 is perfectly even, 1/n is the worst.

    CoV is the coefficient of variation. Raises ValueError if there is no score, or if a score is not finite.
    """
    return 1 / (1 + coefficient_of_variation(scores) ** 2)


def _distribution(shares: Shares) -> NDArray[np.float64]:
    """Returns the shares of one question, scaled to sum 1. Shape: (options,).

    Raises ValueError if a share is negative or not finite, or if all shares are 0.
    """
    values = np.asarray(shares, dtype=np.float64)
    if not np.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
        raise ValueError("shares must be finite, not negative and not all zero")
    normalized: NDArray[np.float64] = values / values.sum()
    return normalized


def _distributions(shares: NDArray[np.floating], starts: NDArray[np.integer]) -> NDArray[np.float64]:
    """Returns the shares of Q questions, scaled to sum 1 for each question.

    Shapes: shares (P,) for P options in all, starts (Q,) -> (P,). `shares` holds the options of all questions, one question after
    another. starts: the index of each question's first option in `shares`.
    Raises ValueError if a share is negative or not finite, or if all shares of a question are 0.
    """
    values = shares.astype(np.float64)  # (P,)
    totals = np.add.reduceat(values, starts)  # (Q,)
    if not np.isfinite(values).all() or (values < 0).any() or (totals <= 0).any():
        raise ValueError("shares must be finite, not negative and not all zero")
    normalized: NDArray[np.float64] = values / np.repeat(totals, np.diff(starts, append=values.size))
    return normalized


def _terms_against_middle(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the terms of the relative entropy (KL divergence) of p to (p + q) / 2, one term for each of P options.

    Shapes: p (P,), q (P,) -> (P,).
    """
    terms: NDArray[np.float64] = np.zeros_like(p)
    seen = p > 0
    terms[seen] = p[seen] * np.log(2 * p[seen] / (p + q)[seen])
    return terms


def _entropy_against_middle(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Returns the relative entropy (KL divergence) of p to (p + q) / 2.

    The ratio is computed as 2 p / (p + q), because halving p + q first would underflow for the smallest shares.
    """
    seen = p > 0
    return float((p[seen] * np.log(2 * p[seen] / (p + q)[seen])).sum())
