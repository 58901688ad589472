"""Recovery of answers from the sums of a kernel method: features are public, so a sum of F'y is a linear system in y.

The method's clients send r = F'y once: F holds the D features of a group's P points, and y the centred logarithms of the shares.
Features come from the embeddings alone, so everybody who knows the questions can compute F.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from leak.setting import Shares, of_question
from pluralllm.client.work.sums import GroupTerms
from pluralllm.common.predictor.data import GroupData, make_points
from pluralllm.common.predictor.model import new_predictor
from pluralllm.common.words.spec import RunSpec, merge, preset_values

SHIFT = 0.01  # added to a share before the logarithm
LEAST = 1e-7  # singular values below this part of the largest one are rounding


def spec_of_sums(groups: Sequence[str]) -> RunSpec:
    """Returns the spec of a run with the preset sums, in which all questions of the groups count."""
    count = len(groups)
    changes = {
        "groups": {"train": list(groups)},
        "round": {"min_clients": count, "target_clients": count},
        "evaluation": {"holdout_share": 0.0},
        "embedding": {"model": "sentence-transformers/all-MiniLM-L6-v2", "dimension": 768},
    }
    return RunSpec.model_validate(merge(preset_values("sums"), changes))


def public_features(spec: RunSpec, data: GroupData) -> NDArray[np.float64]:
    """Returns the features of a group's points, centred over each question, as everybody can compute them: (P, features)."""
    model = new_predictor(spec.predictor, spec.embedding)
    with torch.no_grad():
        h = model.embed(make_points([(data, range(len(data.questions)))]))[0].double().numpy()
    return centred(data, h)


def centred(data: GroupData, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns values of points, minus their mean over each question. Shape (P,) or (P, n)."""
    means = np.add.reduceat(values, data.offsets[:-1]) / np.diff(data.offsets).reshape(-1, *[1] * (values.ndim - 1))
    exact: NDArray[np.float64] = values - means[of_question(data)]
    return exact


def sent(spec: RunSpec, data: GroupData) -> NDArray[np.float64]:
    """Returns what a client sends in the first round of a run: its answer to a prior of zeros. Shape (features,)."""
    assert spec.sums is not None
    answer, _ = GroupTerms(spec, data, torch.device("cpu")).of_prior(np.zeros(spec.sums.features, np.float32))
    return answer.astype(np.float64)


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
