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


def made_up_group(name: str, questions: int, dimension: int, seed: int) -> GroupData:
    """Returns a group with random answers to the same random questions as the other groups."""
    texts, answers = np.random.default_rng(0), np.random.default_rng(seed)
    asked, embedded = [], []
    for number in range(questions):
        points = texts.normal(size=(4, dimension)).astype(np.float32)
        embedded.append(points / np.linalg.norm(points, axis=1, keepdims=True))
        shares = tuple(answers.dirichlet(np.ones(4)).tolist())
        asked.append(Question(f"question {number}", ("a", "b", "c", "d"), shares, (0.0, 1.0, 2.0, 3.0)))
    return group_data(name, asked, embedded)


def made_up_groups() -> dict[str, GroupData]:
    """Returns the groups of this federation."""
    names = [f"group {number}" for number in range(GROUPS)]
    return {name: made_up_group(name, QUESTIONS, DIMENSION, seed) for seed, name in enumerate(names, 1)}
