"""Combines the rewards that several groups give to the same items into one reward for each item.

An item is one candidate answer of a batch of rollouts. words/reward_weights.py describes the rules by which rewards are
combined, and computes the weight of each group. Shapes: G groups, N items.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.words.reward_weights import History, RewardAggregation, mean_reward, remember, weigh_groups

# By group, one reward for each item; None where the group could not score the item.
Rewards = Mapping[str, Sequence[float | None]]


@dataclass(frozen=True, slots=True)
class Aggregated:
    """The combined reward of each of N items, and the group weights that the rewards were computed with."""

    rewards: tuple[float | None, ...]  # (N,); None where no group could score the item
    weights: Mapping[str, float]  # by group; their sum is 1
    history: History  # input for the next batch


def aggregate(settings: RewardAggregation, rewards: Rewards, history: History = ()) -> Aggregated:
    """Combines the rewards of all groups by the rule in `settings`, after computing the weight of each group.

    An item that a group could not score gets its reward from the other groups alone.
    rewards: for each group, one reward for each item, or None for an item that the group could not score.
    history: the field `history` of the result for the previous batch of items. The rule `adaptive` weighs groups by their
    past rewards.
    Raises ValueError if there is no group, or if the groups have different numbers of rewards.
    """
    if not rewards or len({len(values) for values in rewards.values()}) != 1:
        raise ValueError("rewards of at least one group, as many of each")
    groups = sorted(rewards)
    table = np.array([[math.nan if r is None else r for r in rewards[group]] for group in groups])  # (G, N)
    new_history = remember(settings, {group: mean_reward(rewards[group]) for group in groups}, history)
    weights = weigh_groups(settings, groups, new_history)
    return Aggregated(
        tuple(None if math.isnan(value) else float(value) for value in combine(settings, table, np.array(weights))),
        dict(zip(groups, weights, strict=True)),
        new_history,
    )


def combine(
    settings: RewardAggregation, rewards: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Combines a table of rewards into one reward for each item. weights: the weight of each group; the sum is 1.

    Shapes: G groups, N items; rewards (G, N), weights (G,) -> (N,), float64. NaN in `rewards` marks an item that the group could
    not score; NaN in the result marks an item that no group could score.
    """
    scored = ~np.isnan(rewards)  # (G, N)
    none = ~scored.any(0)  # (N,)
    share = np.where(scored, weights[:, None], 0.0)
    share /= np.where(none, 1.0, share.sum(0))
    values = np.where(scored, rewards, 0.0)
    match settings.rule:
        case "min":
            combined = np.where(scored, rewards, math.inf).min(0)
        case "max":
            combined = np.where(scored, rewards, -math.inf).max(0)
        case "alpha" if abs(settings.alpha) > 1e-9:
            raised = np.where(scored, settings.alpha * values, -math.inf)  # (G, N)
            highest = np.where(none, 0.0, raised.max(0))
            total = (share * np.exp(raised - highest)).sum(0)
            combined = (np.log(np.where(none, 1.0, total)) + highest) / settings.alpha
        case _:
            combined = (share * values).sum(0)
    result: NDArray[np.float64] = np.where(none, math.nan, combined)
    return result
