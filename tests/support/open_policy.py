"""A policy that allows what small test runs need: few questions, few clients, any settings, any embedding model."""

import json
from typing import Any

from pluralllm.client.disclosure.policy import Policy

OPEN: dict[str, Any] = {
    "min_cohort": 1,
    "min_questions_behind": 1,
    "max_evaluations_of_run": 1_000_000,
    "max_scores_per_question": 1_000_000,
    "max_runs_a_day": 1_000_000,
    "allowed_presets": ["*"],
    "allowed_embedding_models": ["*"],
    "allow_sums": True,
}


def open_policy(**changes: Any) -> Policy:
    """Returns the open policy, with other values for some keys."""
    return Policy(**{**OPEN, **changes})


def open_policy_text(**changes: Any) -> str:
    """Returns the open policy as the text of a policy.toml."""
    return "".join(f"{key} = {_toml(value)}\n" for key, value in {**OPEN, **changes}.items())


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {json.dumps(one)}" for key, one in value.items()) + "}"
    return json.dumps(value)
