"""Combines the rewards of several groups into one reward for each completion.

The module needs the context of every group in this process.
GroupReward computes the reward of each group; an aggregation rule combines them.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from pluralllm.align.group_reward import GroupReward
from pluralllm.align.ranks import Ranks
from pluralllm.align.rollouts import Text
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.rewards.aggregation import aggregate
from pluralllm.common.words.reward_weights import History, RewardAggregation


class AggregateReward:
    """TRL reward function that scores a completion for several groups and returns one aggregated reward.

    The aggregation rule `adaptive` keeps a history of each group's past rewards. `state_dict` returns the history, so that
    the trainer can store it in a checkpoint.
    """

    def __init__(
        self, reward: GroupReward, aggregation: RewardAggregation, groups: Sequence[str] | None = None
    ) -> None:
        """Creates a reward function that aggregates the rewards of several groups.

        reward: computes the reward of each group. aggregation: the rule that combines the groups' rewards.
        groups: names of the groups; None means every group that `reward` has a context for.
        Raises InvalidArgument for a group that `reward` has no context for.
        """
        self._reward, self._aggregation = reward, aggregation
        self._groups = tuple(reward.groups if groups is None else groups)
        if unknown := sorted(set(self._groups) - set(reward.groups)):
            raise InvalidArgument(field="groups", problem=f"there is no context of {', '.join(unknown)}")
        self._ranks = Ranks()
        self._taking_turns = threading.Lock()  # a history grows by one batch at a time
        self._history: History = ()
        self.weights: Mapping[str, float] = {}  # weight of each group in the newest batch
        self.__name__ = f"{aggregation.rule}_of_groups"

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float | None]:
        """Returns one aggregated reward for each completion; None for a completion that no group could score.

        In a distributed training the completions of all ranks make one batch, so every rank has the same weights and history.
        columns: further columns of the data set, by name, as TRL passes them.
        """
        by_group = [
            [None if each is None else each.reward for each in self._scored(group, prompts, completions, columns)]
            for group in self._groups
        ]
        batch = self._ranks.gathered(list(zip(*by_group, strict=True)))  # one tuple for each completion
        if not batch.values:
            return []
        rewards = dict(zip(self._groups, map(list, zip(*batch.values, strict=True)), strict=True))
        with self._taking_turns:
            aggregated = aggregate(self._aggregation, rewards, self._history)
            self._history, self.weights = aggregated.history, aggregated.weights
        return batch.own(aggregated.rewards)

    def _scored(
        self, group: str, prompts: Sequence[Text], completions: Sequence[Text], columns: Mapping[str, Any]
    ) -> Sequence[Any]:
        return self._reward.score(prompts, completions, **columns, of_group=group)

    def __getstate__(self) -> dict[str, Any]:
        """Returns the object's values without its lock, which belongs to one process."""
        return {name: value for name, value in self.__dict__.items() if name != "_taking_turns"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Makes the object again in another process, with its history so far."""
        self.__dict__.update(state)
        self._taking_turns = threading.Lock()

    def state_dict(self) -> dict[str, Any]:
        """Returns the name of the aggregation rule and each group's history as a dictionary that can be written as JSON."""
        return {"rule": self._aggregation.rule, "history": dict(self._history)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the groups' histories from a dictionary that `state_dict` returned.

        Raises InvalidArgument if the dictionary belongs to another aggregation rule.
        """
        if state["rule"] != self._aggregation.rule:
            raise InvalidArgument(
                field="state", problem=f"is of rule {state['rule']}, this is {self._aggregation.rule}"
            )
        self._history = tuple(sorted((str(group), float(mean)) for group, mean in state["history"].items()))
