"""Small groups with random embeddings and answers, and a small run spec for them."""

from pathlib import Path
from typing import Any

import numpy as np

from pluralllm.common.predictor.architecture import initial_values, parameters, version_layout
from pluralllm.common.predictor.data import GroupData, group_data
from pluralllm.common.weights.layout import write_weights
from pluralllm.common.words.questions import Question
from pluralllm.common.words.spec import RunSpec, merge, preset_values

DIMENSION = 12
SMALL: dict[str, Any] = {
    "round": {"min_clients": 2, "target_clients": 2},
    "predictor": {"d_model": 16, "embedder_layers": 2, "layers": 2, "heads": 2, "feedforward": 16, "dropout": 0.0},
    "training": {
        "optimizer": "adam",
        "learning_rate": 3e-4,
        "schedule": "constant",
        "loss": "gaussian",
        "sharpness_spread": 0.0,
        "local_steps": 2,
        "episodes": {"min_context": 4, "max_context": 8, "min_targets": 4, "max_targets": 8},
    },
    "evaluation": {"context_questions": 6, "draws": 2, "holdout_share": 0.25},
    "embedding": {"model": "m", "dimension": DIMENSION},
}

KERNEL: dict[str, Any] = {"architecture": "fourier-kernel/1", "features": 24, "group_rank": 3}

SUMS: dict[str, Any] = {
    "rounds": 8,
    "predictor": {"architecture": "kernel-sums/1", "features": 24, "group_rank": 3, "subspace_rounds": 2},
    "aggregation": {"weighting": "uniform"},
}


def small_spec(over: dict[str, Any] | None = None, preset: str = "attention") -> RunSpec:
    """Returns a small variant of a preset's spec; `over` is merged over it."""
    return RunSpec.model_validate(merge(merge(preset_values(preset), SMALL), over or {}))


def small_group(name: str = "a", questions: int = 60, seed: int = 1) -> GroupData:
    """Returns a group whose questions and embeddings are the same for every seed and whose answers differ.

    A question has 2 to 5 options; the last option is not on the scale.
    """
    texts, answers = np.random.default_rng(0), np.random.default_rng(seed)
    group_questions, embedded = [], []
    for number in range(questions):
        options = int(texts.integers(2, 6))
        points = texts.normal(size=(options, DIMENSION)).astype(np.float32)
        shares = answers.dirichlet(np.ones(options))
        scale = (*(float(position) for position in range(options - 1)), None)
        labels = tuple(f"option {index}" for index in range(options))
        group_questions.append(Question(f"question {number}", labels, tuple(shares.tolist()), scale))
        embedded.append(points / np.linalg.norm(points, axis=1, keepdims=True))
    return group_data(name, group_questions, embedded)


def write_version_0(path: Path, spec: RunSpec) -> Path:
    """Writes the spec's first weights, as the coordinator makes them."""
    layout = version_layout(spec, 0)
    shapes = [p for p in parameters(spec.predictor, spec.embedding.dimension) if (p.name, p.shape) in layout.tensors]
    write_weights(path, layout, (initial_values(p, spec.seed).ravel() for p in shapes))
    return path
