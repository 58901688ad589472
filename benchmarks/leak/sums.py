"""Recovery of answers from the sums of a kernel method: features are public, so a sum of F'y is a linear system in y.

The method's clients send r = F'y once: F holds the D features of a group's P points, and y the centred logarithms of the shares.
Features come from the embeddings alone, so everybody who knows the questions can compute F.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from leak.setting import Shares, of_question
from pluralllm.common.predictor.data import GroupData

SHIFT = 0.01  # added to a share before the logarithm
STEP = 2.0**-16  # values of a sum are rounded to multiples of this before they leave
LEAST = 1e-7  # singular values below this part of the largest one are rounding


def public_features(data: GroupData, features: int, seed: int) -> NDArray[np.float64]:
    """Returns random Fourier features of a group's points, centred over each question. Shape (P, features)."""
    rng = np.random.default_rng(seed)
    width = data.embeddings.shape[1]
    scaled = data.embeddings.astype(np.float64) * np.sqrt(width / 2)  # components of unit variance
    weights = rng.normal(0, 1 / np.sqrt(width), (width, features))
    made = np.cos(scaled @ weights + rng.uniform(0, 2 * np.pi, features)) * np.sqrt(2 / features)
    return centred(data, made)


def centred(data: GroupData, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns values of points, minus their mean over each question. Shape (P,) or (P, n)."""
    means = np.add.reduceat(values, data.offsets[:-1]) / np.diff(data.offsets).reshape(-1, *[1] * (values.ndim - 1))
    exact: NDArray[np.float64] = values - means[of_question(data)]
    return exact


def sent(data: GroupData, features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns what a client of the method sends: F'y in fixed-point numbers. Shape (D,)."""
    logs = centred(data, np.log(data.shares.astype(np.float64) + SHIFT))
    rounded: NDArray[np.float64] = np.rint(features.T @ logs / STEP) * STEP
    return rounded


def answers_of(data: GroupData, features: NDArray[np.float64], total: NDArray[np.float64]) -> Shares:
    """Returns the shares that a sum hands over, by least squares. features: (P, D) of all points in the sum; total: (D,)."""
    gram = features @ features.T  # (P, P)
    values, vectors = np.linalg.eigh(gram)
    kept = values > LEAST * values[-1]
    logs = vectors[:, kept] @ ((vectors[:, kept].T @ (features @ total)) / values[kept])  # (P,)
    return shares_from(data, logs)


def shares_from(data: GroupData, logs: NDArray[np.float64]) -> Shares:
    """Returns the shares whose shifted logarithms, centred over each question, are `logs`. Shape (P,)."""
    question, sizes = of_question(data), np.diff(data.offsets)
    raised = np.exp(logs)
    totals = np.add.reduceat(raised, data.offsets[:-1])
    shifted = raised / totals[question] * (1 + SHIFT * sizes)[question]
    shares = np.maximum(shifted - SHIFT, 0) + 1e-9
    normalized: Shares = shares / np.add.reduceat(shares, data.offsets[:-1])[question]
    return normalized


def of_one_group(groups: Sequence[GroupData]) -> set[str]:
    """Returns the ids of the questions that exactly one group answers."""
    times = Counter(question.id for data in groups for question in data.questions)
    return {key for key, number in times.items() if number == 1}
