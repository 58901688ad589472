"""Rewards of many groups as one: fixed rules, and one that remembers who was badly served. Pure; the coordinator uses it too.

Mean, min, max and an adaptive rule are those that arXiv 2512.08786 and arXiv 2604.04261 (APPA) compare; a fixed alpha is the
family of arXiv 2405.00254: alpha to -infinity is the min, 0 the mean, +infinity the max. G: groups, N: rewards of each.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pluralllm.common.metrics import fairness_index

Rewards = Mapping[str, Sequence[float | None]]  # of each group: None where it could not score
History = tuple[tuple[str, float], ...]  # of each group, sorted: its rewards so far, newest weighted most


class RewardAggregation(BaseModel):
    """Which rule, with what numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: Literal["mean", "min", "max", "alpha", "adaptive"] = "mean"
    alpha: Annotated[float, Field(ge=-1000, le=1000)] = -10.0  # of rule alpha
    # Of rule adaptive: a group's history is decay * history + (1 - decay) * its newest mean reward; its weight is
    # proportional to exp(-history / temperature) while the histories' fairness index is below fair_from, else 1.
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.8
    temperature: Annotated[float, Field(gt=0, le=100)] = 0.1
    fair_from: Annotated[float, Field(ge=0, le=1)] = 1.0


@dataclass(frozen=True, slots=True)
class Aggregated:
    """One reward for each item, and how it came about."""

    rewards: tuple[float | None, ...]  # (N,); None where no group could score
    weights: Mapping[str, float]  # of the groups that are in it, sum 1
    history: History


def aggregate(settings: RewardAggregation, rewards: Rewards, history: History = ()) -> Aggregated:
    """Items that a group could not score are the others' alone. Raises ValueError for no group, or lists of unlike length."""
    if not rewards or len({len(each) for each in rewards.values()}) != 1:
        raise ValueError("rewards of at least one group, as many of each")
    groups = sorted(rewards)
    found = np.array([[math.nan if r is None else r for r in rewards[group]] for group in groups])  # (G, N)
    known = remember(settings, {group: mean_reward(rewards[group]) for group in groups}, history)
    weights = weigh_groups(settings, groups, known)
    return Aggregated(
        tuple(None if math.isnan(value) else float(value) for value in _combine(settings, found, weights)),
        dict(zip(groups, weights.tolist(), strict=True)),
        known,
    )


def mean_reward(rewards: Sequence[float | None]) -> float | None:
    """Of what could be scored; None if nothing could."""
    known = [reward for reward in rewards if reward is not None]
    return math.fsum(known) / len(known) if known else None


def remember(settings: RewardAggregation, newest: Mapping[str, float | None], history: History) -> History:
    """Histories with one more batch; a group that is new begins with its first, one that is away keeps what it had."""
    known = dict(history)
    for group, mean in newest.items():
        if mean is not None:
            known[group] = settings.decay * known[group] + (1 - settings.decay) * mean if group in known else mean
    return tuple(sorted(known.items()))


def weigh_groups(settings: RewardAggregation, groups: Sequence[str], history: History) -> NDArray[np.float64]:
    """(G,), sum 1. Only `adaptive` has others than equal ones."""
    equal = np.full(len(groups), 1 / len(groups))
    known = dict(history)
    if settings.rule != "adaptive" or not all(group in known for group in groups):
        return equal
    past = np.array([known[group] for group in groups])
    if past.mean() > 0 and fairness_index(past.tolist()) >= settings.fair_from:
        return equal
    raised = np.exp(-(past - past.min()) / settings.temperature)
    weights: NDArray[np.float64] = raised / raised.sum()
    return weights


def _combine(
    settings: RewardAggregation, found: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(G, N), (G,) -> (N,); NaN where a group could not score, and in the result where none could."""
    scored = ~np.isnan(found)  # (G, N)
    none = ~scored.any(0)  # (N,)
    share = np.where(scored, weights[:, None], 0.0)
    share /= np.where(none, 1.0, share.sum(0))
    values = np.where(scored, found, 0.0)
    match settings.rule:
        case "min":
            combined = np.where(scored, found, math.inf).min(0)
        case "max":
            combined = np.where(scored, found, -math.inf).max(0)
        case "alpha" if abs(settings.alpha) > 1e-9:
            raised = np.where(scored, settings.alpha * values, -math.inf)  # (G, N)
            highest = np.where(none, 0.0, raised.max(0))
            total = (share * np.exp(raised - highest)).sum(0)
            combined = (np.log(np.where(none, 1.0, total)) + highest) / settings.alpha
        case _:
            combined = (share * values).sum(0)
    result: NDArray[np.float64] = np.where(none, math.nan, combined)
    return result
