"""Settings of runs that ask groups for rewards, and the weight of each group's rewards. This module has no I/O and no numpy.

arXiv 2512.08786 and arXiv 2604.04261 (APPA) compare the rules `mean`, `min`, `max` and `adaptive`. The rule `adaptive` gives
more weight to groups whose past rewards were lower. The rule `alpha` is the family of arXiv 2405.00254 and has a parameter
alpha. The rule gives the minimum if alpha is -infinity, the mean if alpha is 0, and the maximum if alpha is +infinity.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from pluralllm.common.words.names import FIXED_MODEL_PATTERN

# (group or client, decayed mean of its rewards so far), sorted; the newest reward weighs most.
History = tuple[tuple[str, float], ...]
DIGITS = 12  # weights and histories are rounded, because exp may differ in its last bit on another machine


class RewardAggregation(BaseModel):
    """The rule that combines the rewards of several groups into one reward, with the rule's parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: Literal["mean", "min", "max", "alpha", "adaptive"] = "mean"
    # For rule alpha: from the min (low) over the mean (0) to the max (high).
    alpha: Annotated[float, Field(ge=-1000, le=1000)] = -10.0
    # For rule adaptive: a group's history is decay * history + (1 - decay) * its newest mean reward. While the fairness index
    # of the histories is below fair_from, weights are proportional to exp(-history / temperature); else they are equal.
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.8
    temperature: Annotated[float, Field(gt=0, le=100)] = 0.1
    fair_from: Annotated[float, Field(ge=0, le=1)] = 1.0


MAX_CANDIDATES = 4096


class RewardRun(BaseModel):
    """The settings of a run that asks for rewards. The run does not train; in each round, clients score a batch of rollouts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Annotated[str, Field(pattern=FIXED_MODEL_PATTERN)]  # the model whose predictor scores, on this coordinator
    model_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # digest of that model
    # Questions that a group takes from its own answers as the context, drawn by the seed; all if it has fewer.
    context_questions: Annotated[int, Field(ge=1, le=1000)] = 40
    # A constant: a batch must fit into one message with the texts of its rollouts. It stays in the format for the hash's sake.
    max_candidates: Annotated[int, Field(ge=MAX_CANDIDATES, le=MAX_CANDIDATES)] = MAX_CANDIDATES
    aggregation: RewardAggregation = RewardAggregation()


@dataclass(frozen=True, slots=True)
class RewardOptions:
    """The settings of a reward run that its creator chooses.

    The run's other settings follow from the model that scores the rollouts.
    """

    rule: str = "mean"
    temperature: float = 0.1  # for rule adaptive
    alpha: float = -10.0  # for rule alpha
    batches: int = 100_000  # the run ends after this number of batches
    min_clients: int = 2
    target_clients: int = 100  # cohort size; a number below min_clients counts as min_clients
    deadline_s: float = 60.0  # for one batch
    grace_s: float = 5.0  # for the other clients once min_clients have answered


def mean_reward(rewards: Sequence[float | None]) -> float | None:
    """Mean of a group's rewards for a batch, not counting the items that the group could not score (None).

    Returns None if the group could score no item.
    """
    scored = [reward for reward in rewards if reward is not None]
    return math.fsum(scored) / len(scored) if scored else None


def remember(settings: RewardAggregation, newest: Mapping[str, float | None], history: History) -> History:
    """Returns each group's history (decayed mean of its rewards) after one more batch.

    newest: for each group, the mean reward of the new batch; None if the group scored no item. history: the histories before
    the batch.
    The history of a new group begins with its first reward. A group without a new reward keeps its history.
    """
    past = dict(history)
    for group, mean in newest.items():
        if mean is not None:
            before = past.get(group, mean)
            past[group] = round(settings.decay * before + (1 - settings.decay) * mean, DIGITS)
    return tuple(sorted(past.items()))


def weigh_groups(settings: RewardAggregation, groups: Sequence[str], history: History) -> tuple[float, ...]:
    """Returns the weight of each group, in the order of `groups`; the sum is 1. history: decayed mean reward of each group.

    The weights differ only if the rule is `adaptive`, every group has a history, and the histories' fairness index is below
    the limit `fair_from` in `settings`.
    """
    by_group = dict(history)
    if settings.rule != "adaptive" or not all(group in by_group for group in groups):
        return (1 / len(groups),) * len(groups)
    past = [by_group[group] for group in groups]
    if _fairness_index(past) >= settings.fair_from:
        return (1 / len(groups),) * len(groups)
    lowest = min(past)
    raised = [math.exp(-(value - lowest) / settings.temperature) for value in past]
    return tuple(round(value / math.fsum(raised), DIGITS) for value in raised)


def _fairness_index(values: Sequence[float]) -> float:
    """Returns Jain's fairness index of n values: 1 if all values are equal (or all 0), 1/n if only one value is not 0."""
    total, squares = math.fsum(values), math.fsum(value * value for value in values)
    return 1.0 if squares == 0 else total * total / (len(values) * squares)
