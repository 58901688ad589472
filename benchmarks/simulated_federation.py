"""The federation that benchmarks/against_flower_simulation.py plays here and in Flower: many clients and a small predictor."""

from typing import Any

import numpy as np
import torch

from pluralllm.common.predictor.data import GroupData, group_data
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.questions import Question
from pluralllm.common.words.spec import RunSpec, merge, preset_values
from pluralllm.experiment.spec import Virtual
from pluralllm.experiment.virtual import groups_of_clients

CPU = torch.device("cpu")
GROUPS, QUESTIONS, DIMENSION = 8, 100, 64


def spec_of(clients: int, rounds: int) -> RunSpec:
    """Returns the spec: the default preset with 64 features for texts of 32 numbers, without dropout.

    Without dropout, a client trains to the same values, within rounding, whoever shares its pass.
    """
    usual = preset_values("default")
    changes: dict[str, Any] = {
        "rounds": rounds,
        "round": {"min_clients": clients, "target_clients": clients},
        "predictor": {"features": 64, "group_rank": 4, "dropout": 0.0},
        "aggregation": {"weighting": "uniform"},
        "updates": {"encoding": "fp32"},
        "embedding": {"model": "made up", "dimension": DIMENSION},
    }
    return RunSpec.model_validate(merge(usual, changes))


def clients_of(clients: int) -> dict[ClientId, str]:
    """Returns the group of each client."""
    return groups_of_clients(Virtual(clients=clients, per_group="even"), [f"group {n}" for n in range(GROUPS)], 0)


def groups_of(_spec: RunSpec) -> dict[str, GroupData]:
    """Returns groups with random answers to the same random questions."""
    texts = np.random.default_rng(0)
    embedded = []
    for _ in range(QUESTIONS):
        points = texts.normal(size=(4, DIMENSION)).astype(np.float32)
        embedded.append(points / np.linalg.norm(points, axis=1, keepdims=True))
    groups = {}
    for number in range(GROUPS):
        answers = np.random.default_rng(number + 1)
        asked = [
            Question(
                f"question {n}",
                ("a", "b", "c", "d"),
                tuple(answers.dirichlet(np.ones(4)).tolist()),
                (0.0, 1.0, 2.0, 3.0),
            )
            for n in range(QUESTIONS)
        ]
        groups[f"group {number}"] = group_data(f"group {number}", asked, embedded)
    return groups
