"""Uses the jointly trained predictor as a reward model for tuning language models (needs the extra `align`).

The package may touch torch, files and the network. Start reading at group_reward.py, which computes the rewards.
"""

import importlib
from typing import Any

_MODULES = {
    "AggregateReward": "aggregate_reward",
    "FederatedReward": "federated_reward",
    "GroupReward": "group_reward",
    "PluralConfig": "plural_predictor",
    "PluralPredictor": "plural_predictor",
}
__all__ = ["AggregateReward", "FederatedReward", "GroupReward", "PluralConfig", "PluralPredictor"]


def __getattr__(name: str) -> Any:
    """Imports the module of a public class when the class is first used, so that exporting a model does not import torch.

    Raises AttributeError for a name that is no public class.
    """
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
