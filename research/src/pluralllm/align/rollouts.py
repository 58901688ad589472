"""Turns a trainer's prompts and completions into questions, and predicted shares into rewards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pluralllm.align.answers import Messages, Reader, read_by, text_of
from pluralllm.align.ranks import Ranks
from pluralllm.align.reward_forms import FORMS
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.words.questions import Question

Text = str | Messages


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the data set columns that the reward functions read."""

    options: str = "options"  # a prompt's candidates; without them the completions sampled for it are the candidates
    question: str = "question"  # the question that the group is asked, if the prompt holds more text than that
    scale: str = "scale"  # positions of the options, for form wasserstein


COLUMNS = Columns()


@dataclass(frozen=True, slots=True)
class Rollout:
    """A completion that is to be scored, with the question that it answers."""

    question: Question | None  # its options are the candidates; None if the prompt or the completion is empty
    completion: str
    has_options: bool  # True: the completion names an option; False: the completion is itself a candidate
    problem: str = ""  # reason why there is no question


@dataclass(frozen=True, slots=True)
class Judging:
    """Settings for turning the predicted shares of the candidates into a completion's reward.

    The candidates are the options of a question or, if it has no options, the completions that were sampled for one prompt.
    """

    form: str = "probability"  # a name in reward_forms.FORMS
    caution: float = 0.0  # factor of the predicted spread that is subtracted
    no_option: float | None = None  # reward of a completion that names no option
    read: Reader | None = None  # reads a completion as shares of the options; None: read_answer

    def __post_init__(self) -> None:
        """Raises InvalidArgument if there is no reward form of the given name."""
        if self.form not in FORMS:
            raise InvalidArgument(field="form", problem=f"is {self.form!r}, allowed: {', '.join(FORMS)}")


@dataclass(frozen=True, slots=True)
class Scored:
    """Reward of one completion, with the uncertainty of the prediction."""

    reward: float
    spread: float  # predicted standard deviation of the group's share of it


def read_rollouts(
    prompts: Sequence[Text], completions: Sequence[Text], columns: Mapping[str, Any], names: Columns, ranks: Ranks
) -> list[Rollout]:
    """Returns one rollout (a completion with the question that it answers) for each completion, in order.

    columns: further columns of the data set, by name. names: the names of the columns that are read.
    If a prompt has no options, its candidates are the distinct completions of the same prompt in this call, on all ranks.
    Numbers are taken as texts (5, 5.0 and numpy's int64(5) are "5").
    Raises InvalidArgument for a prompt, a completion or an option that is neither a text, a number nor a conversation.
    """
    asked = _texts(names.question if names.question in columns else "prompts", columns.get(names.question, prompts))
    texts = _texts("completions", completions)
    options, scales = (
        [_listed(name, row, value) for row, value in enumerate(columns[name])]
        if name in columns
        else [None] * len(texts)
        for name in (names.options, names.scale)
    )
    sampled: dict[str, dict[str, None]] = {}
    for question, completion in ranks.gathered(list(zip(asked, texts, strict=True))).values:
        if completion:
            sampled.setdefault(question, {})[completion] = None
    rollouts = []
    for question, completion, listed, scale in zip(asked, texts, options, scales, strict=True):
        if not question or not (completion or listed):
            rollouts.append(
                Rollout(None, completion, bool(listed), "empty prompt" if completion else "empty completion")
            )
            continue
        candidates = tuple(_texts(names.options, listed)) if listed else tuple(sampled[question])
        shares = tuple(1 / len(candidates) for _ in candidates)  # a Question needs shares; a prediction ignores them
        asks = Question(question, candidates, shares, tuple(scale) if scale else None, is_ordered=bool(listed))
        rollouts.append(Rollout(asks, completion, bool(listed)))
    return rollouts


def _texts(name: str, values: Sequence[Any]) -> list[str]:
    """Returns the texts of a column. Raises InvalidArgument for a value that has none."""
    texts = []
    for row, value in enumerate(values):
        try:
            texts.append(text_of(value).strip())
        except ValueError as error:
            raise InvalidArgument(field=f"{name}[{row}]", problem=str(error)) from error
    return texts


def _listed(name: str, row: int, value: Any) -> list[Any] | None:
    """Returns a list, a tuple or an array of a data set as a list; None for None. Raises InvalidArgument for something else."""
    values = value.tolist() if isinstance(value, np.ndarray) else value
    if values is None or isinstance(values, list | tuple):
        return None if values is None else list(values)
    raise InvalidArgument(field=f"{name}[{row}]", problem=f"is {values!r}; give a list, such as [{values!r}, ...]")


def judge(
    rollout: Rollout, judging: Judging, shares: NDArray[np.floating], spreads: NDArray[np.floating]
) -> Scored | None:
    """Returns the reward of a completion, or None if the completion names no option and `judging` sets no reward for that case.

    shares, spreads: (candidates,), the predicted share and its standard deviation for each candidate of the question.
    Raises InvalidArgument if a reader of the user's own returns something that is no answer.
    """
    assert rollout.question is not None
    if not rollout.has_options:
        number = rollout.question.options.index(rollout.completion)
        return Scored(float(shares[number]) - judging.caution * float(spreads[number]), float(spreads[number]))
    answer = read_by(judging.read, rollout.completion, rollout.question.options)
    if answer is None:
        return None if judging.no_option is None else Scored(judging.no_option, 0.0)
    value = FORMS[judging.form](answer, np.asarray(shares, np.float64), rollout.question.scale)
    spread = float(answer @ spreads)
    return Scored(value - judging.caution * spread, spread)
