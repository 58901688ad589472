"""The Python interface: what the commands do, for notebooks and programs.

    Federation            a coordinator's runs, members and models; Federation.simulate trains in this process
    RunSpec               what a run does; run_spec makes one from a preset
    PreferencePredictor   a model version: predicts a group's answers from a few of them
    GroupReward           a reward function for TRL from such a model
    Experiment            compares training methods; its results are tables
    coordinator_sight     what a coordinator has of one group's update, plain and masked, and what an attacker computes from it

A name is imported when it is first used, so `import pluralllm.api` is light. The package may touch what the operator's client,
align and experiment touch. Start reading at federation.py; docs/python.md has an example of each.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pluralllm.align.group_reward import GroupReward
    from pluralllm.api.events import (
        ClientLost,
        Event,
        ModelPublished,
        RunChanged,
        ScoreArrived,
        UpdateArrived,
        UpdateRefused,
    )
    from pluralllm.api.experiment import Experiment, Results
    from pluralllm.api.federation import Federation, Run
    from pluralllm.api.predictor import PreferencePredictor
    from pluralllm.api.sight import CoordinatorSight, coordinator_sight
    from pluralllm.api.simulation import Simulation
    from pluralllm.api.specs import run_spec
    from pluralllm.client.data.answers import read_answers
    from pluralllm.client.data.sample_survey import sample_groups
    from pluralllm.common.errors.root import PluralError
    from pluralllm.common.words.questions import Question
    from pluralllm.common.words.spec import RunSpec

_MODULES = {
    "ClientLost": "api.events",
    "CoordinatorSight": "api.sight",
    "Event": "api.events",
    "Experiment": "api.experiment",
    "Federation": "api.federation",
    "GroupReward": "align.group_reward",
    "ModelPublished": "api.events",
    "PluralError": "common.errors.root",
    "PreferencePredictor": "api.predictor",
    "Question": "common.words.questions",
    "Results": "api.experiment",
    "Run": "api.federation",
    "RunChanged": "api.events",
    "RunSpec": "common.words.spec",
    "ScoreArrived": "api.events",
    "Simulation": "api.simulation",
    "UpdateArrived": "api.events",
    "UpdateRefused": "api.events",
    "coordinator_sight": "api.sight",
    "read_answers": "client.data.answers",
    "run_spec": "api.specs",
    "sample_groups": "client.data.sample_survey",
}
__all__ = [
    "ClientLost",
    "CoordinatorSight",
    "Event",
    "Experiment",
    "Federation",
    "GroupReward",
    "ModelPublished",
    "PluralError",
    "PreferencePredictor",
    "Question",
    "Results",
    "Run",
    "RunChanged",
    "RunSpec",
    "ScoreArrived",
    "Simulation",
    "UpdateArrived",
    "UpdateRefused",
    "coordinator_sight",
    "read_answers",
    "run_spec",
    "sample_groups",
]


def __getattr__(name: str) -> Any:
    """Imports the module of a public name when the name is first used. Raises AttributeError for a name that is not public."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"pluralllm.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """Lists the public names, for completion in a notebook."""
    return list(__all__)
