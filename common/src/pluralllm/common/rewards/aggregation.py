"""Rewards of many groups as one number for each item. The rules, and how much each group counts: reward_weights.py.

G: groups, N: rewards of each.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.words.reward_weights import History, RewardAggregation, mean_reward, remember, weigh_groups

Rewards = Mapping[str, Sequence[float | None]]  # of each group: None where it could not score


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
        tuple(None if math.isnan(value) else float(value) for value in combine(settings, found, np.array(weights))),
        dict(zip(groups, weights, strict=True)),
        known,
    )


def combine(
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
