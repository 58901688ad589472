"""The reward of a group as verl calls reward functions: one completion at a time, or a batch.

verl loads this file by its path (`custom_reward_function.path`, `name=compute_score`) and hands the settings of GroupReward on
from `custom_reward_function.reward_kwargs`. A row's `extra_info` holds the question and, where it has any, its options.
"""

import inspect
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from pluralllm.align.group_reward import GroupReward
from pluralllm.common.errors.tree import InvalidArgument

SETTINGS = frozenset(inspect.signature(GroupReward.__init__).parameters) - {"self"}
OF_VERL = frozenset({"reward_router_address", "reward_model_tokenizer"})  # what verl itself adds
NEEDED = ("model", "contexts")
_made: dict[str, GroupReward] = {}  # by settings; a worker's process loads a model once
_making = threading.Lock()


def compute_score(  # the names of the arguments are verl's
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    **settings: Any,
) -> float:
    """Returns the reward of one completion; the setting `no_option` (0 by default) for one that cannot be scored.

    data_source, ground_truth: not used, because the group's context says what is good. extra_info: holds `question`, and
    `options` and `group` where there are any. Without options the reward is the predicted mean of the completion: one call
    shows one candidate, so `compute_score_batch` is the better form. settings: arguments of GroupReward.
    Raises InvalidArgument for a row without a question and for an unknown setting, and the errors of GroupReward.
    """
    return compute_score_batch([data_source], [solution_str], [ground_truth], [extra_info], **settings)[0]


def compute_score_batch(
    data_sources: Sequence[str],  # noqa: ARG001 - verl gives it by name
    solution_strs: Sequence[str],
    ground_truths: Sequence[Any],  # noqa: ARG001 - verl gives it by name
    extra_infos: Sequence[Mapping[str, Any] | None] | None = None,
    **settings: Any,
) -> list[float]:
    """Returns the rewards of a batch, as verl's batch reward manager asks for them. See `compute_score` for the arguments."""
    infos = [None] * len(solution_strs) if extra_infos is None else list(extra_infos)
    rows = [_row(number, info) for number, info in enumerate(infos)]
    no_option = settings.get("no_option")
    reward = _reward({name: value for name, value in settings.items() if name not in OF_VERL})
    column = settings.get("group_column", "group")
    scores = reward(
        [row["question"] for row in rows],
        list(solution_strs),
        options=[row.get("options") for row in rows],
        scale=[row.get("scale") for row in rows],
        **({column: [row.get(column) for row in rows]} if any(column in row for row in rows) else {}),
    )
    return [float((no_option or 0.0) if score is None else score) for score in scores]


def _row(number: int, info: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if not isinstance(info, Mapping) or info.get("question") is None:
        problem = (
            'has no question; write {"question": ..., "options": [...]} into the column extra_info of the data set'
        )
        raise InvalidArgument(field=f"extra_info of row {number}", problem=problem)
    return info


def _reward(settings: Mapping[str, Any]) -> GroupReward:
    """Returns the reward function of these settings, which is made once in a process."""
    unknown, absent = sorted(set(settings) - SETTINGS), [name for name in NEEDED if name not in settings]
    if unknown or absent:
        what = f"have unknown {', '.join(unknown)}" if unknown else f"do not give {', '.join(absent)}"
        problem = f"{what}; they are the arguments of GroupReward: {', '.join(sorted(SETTINGS))}"
        raise InvalidArgument(field="reward_kwargs", problem=problem)
    key = repr(sorted(settings.items()))
    with _making:
        if key not in _made:
            contexts = {str(group): context for group, context in settings["contexts"].items()}
            _made[key] = GroupReward(**{**settings, "contexts": contexts})
        return _made[key]
