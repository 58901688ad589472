"""Runs that ask groups for rewards: their settings, and how much each group's rewards count. Pure, and free of numpy.

The rules are those that arXiv 2512.08786 and arXiv 2604.04261 (APPA) compare: mean, min, max, and one that weighs groups by how
well they have been served; a fixed alpha is the family of arXiv 2405.00254: alpha to -infinity is the min, 0 the mean, +infinity
the max.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from pluralllm.common.words.names import FIXED_MODEL_PATTERN

History = tuple[
    tuple[str, float], ...
]  # of each group (or client), sorted: its mean rewards so far, newest weighted most
DIGITS = 12  # weights and histories are rounded: exp may differ in its last bit on another machine


class RewardAggregation(BaseModel):
    """Rewards of many groups as one: which rule, with what numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: Literal["mean", "min", "max", "alpha", "adaptive"] = "mean"
    alpha: Annotated[float, Field(ge=-1000, le=1000)] = -10.0  # of rule alpha
    # Of rule adaptive: a group's history is decay * history + (1 - decay) * its newest mean reward; its weight is
    # proportional to exp(-history / temperature) while the histories' fairness index is below fair_from, else all weigh alike.
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.8
    temperature: Annotated[float, Field(gt=0, le=100)] = 0.1
    fair_from: Annotated[float, Field(ge=0, le=1)] = 1.0


MAX_CANDIDATES = 4096


class RewardRun(BaseModel):
    """What makes a run one that asks for rewards: no training, each round is a batch of rollouts that clients score."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Annotated[str, Field(pattern=FIXED_MODEL_PATTERN)]  # the predictor, on this coordinator
    model_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # of it
    context_questions: Annotated[int, Field(ge=1, le=1000)] = (
        40  # of a group's own answers, seeded; all if it has fewer
    )
    # A constant: a batch must fit into one message with the texts of its rollouts. It stays in the format for the hash's sake.
    max_candidates: Annotated[int, Field(ge=MAX_CANDIDATES, le=MAX_CANDIDATES)] = MAX_CANDIDATES
    aggregation: RewardAggregation = RewardAggregation()


@dataclass(frozen=True, slots=True)
class RewardOptions:
    """The settings of a reward run that do not follow from the model whose predictor scores."""

    rule: str = "mean"
    temperature: float = 0.1  # for rule adaptive
    alpha: float = -10.0  # for rule alpha
    batches: int = 100_000  # the run ends after so many
    min_clients: int = 2
    target_clients: int = 100  # at least min_clients are asked, whatever stands here
    deadline_s: float = 60.0  # for one batch
    grace_s: float = 5.0  # for the other clients once min_clients have answered


def mean_reward(rewards: Sequence[float | None]) -> float | None:
    """Of what could be scored; None if nothing could."""
    known = [reward for reward in rewards if reward is not None]
    return math.fsum(known) / len(known) if known else None


def remember(settings: RewardAggregation, newest: Mapping[str, float | None], history: History) -> History:
    """Histories with one more batch; a group that is new begins with its first, one that is away keeps what it had."""
    known = dict(history)
    for group, mean in newest.items():
        if mean is not None:
            before = known.get(group, mean)
            known[group] = round(settings.decay * before + (1 - settings.decay) * mean, DIGITS)
    return tuple(sorted(known.items()))


def weigh_groups(settings: RewardAggregation, groups: Sequence[str], history: History) -> tuple[float, ...]:
    """One for each group, sum 1. Only `adaptive` has others than equal ones, and once all have a history."""
    known = dict(history)
    if settings.rule != "adaptive" or not all(group in known for group in groups):
        return (1 / len(groups),) * len(groups)
    past = [known[group] for group in groups]
    if _fairness_index(past) >= settings.fair_from:
        return (1 / len(groups),) * len(groups)
    lowest = min(past)
    raised = [math.exp(-(value - lowest) / settings.temperature) for value in past]
    return tuple(round(value / math.fsum(raised), DIGITS) for value in raised)


def _fairness_index(values: Sequence[float]) -> float:
    """Jain's, as metrics.fairness_index has it; 1 for nothing but zeros."""
    total, squares = math.fsum(values), math.fsum(value * value for value in values)
    return 1.0 if squares == 0 else total * total / (len(values) * squares)
