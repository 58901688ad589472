"""Uses the jointly trained predictor as a reward model for tuning language models (needs the extra `align`)."""

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
    """Imports a public class when it is first used, because exporting a model must not import torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
