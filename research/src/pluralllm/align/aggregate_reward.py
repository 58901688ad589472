"""Rewards of several groups as one, where their contexts are at hand: GroupReward for each, then a rule of aggregation."""

from collections.abc import Mapping, Sequence
from typing import Any

from pluralllm.align.group_reward import GroupReward
from pluralllm.align.rollouts import Text
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.rewards.aggregation import aggregate
from pluralllm.common.words.reward_weights import History, RewardAggregation


class AggregateReward:
    """Callable as TRL wants it. What `adaptive` remembers of each group is in `state_dict`, for the trainer's checkpoint."""

    def __init__(
        self, reward: GroupReward, aggregation: RewardAggregation, groups: Sequence[str] | None = None
    ) -> None:
        """`groups`: of those the reward has contexts of; all without it. Raises InvalidArgument for one it has none of."""
        self._reward, self._aggregation = reward, aggregation
        self._groups = tuple(reward.groups if groups is None else groups)
        if unknown := sorted(set(self._groups) - set(reward.groups)):
            raise InvalidArgument(field="groups", problem=f"there is no context of {', '.join(unknown)}")
        self._history: History = ()
        self.weights: Mapping[str, float] = {}  # of the newest batch
        self.__name__ = f"{aggregation.rule}_of_groups"

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float | None]:
        """Rewards, one for each completion; None where no group could score it."""
        if not completions:
            return []
        rewards = {
            group: [
                None if each is None else each.reward for each in self._scored(group, prompts, completions, columns)
            ]
            for group in self._groups
        }
        found = aggregate(self._aggregation, rewards, self._history)
        self._history, self.weights = found.history, found.weights
        return list(found.rewards)

    def _scored(
        self, group: str, prompts: Sequence[Text], completions: Sequence[Text], columns: Mapping[str, Any]
    ) -> Sequence[Any]:
        return self._reward.score(prompts, completions, **columns, of_group=group)

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"rule": self._aggregation.rule, "history": dict(self._history)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises InvalidArgument for the state of another rule."""
        if state["rule"] != self._aggregation.rule:
            raise InvalidArgument(
                field="state", problem=f"is of rule {state['rule']}, this is {self._aggregation.rule}"
            )
        self._history = tuple(sorted((str(group), float(mean)) for group, mean in state["history"].items()))
