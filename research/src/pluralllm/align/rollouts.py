"""What a trainer calls a reward function with, as questions, candidates and answers; and a reward from predicted shares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pluralllm.align.answers import Messages, read_answer, text_of
from pluralllm.align.reward_forms import FORMS
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.words.questions import Question

Text = str | Messages


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of data set columns."""

    options: str = "options"  # a prompt's candidates; where there are none they are the completions sampled for it
    question: str = "question"  # the question as the group would be asked, if the prompt holds more than that
    scale: str = "scale"  # positions of the options, for form wasserstein


COLUMNS = Columns()


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion."""

    question: Question | None  # with the candidates as options; None if there is nothing to ask
    completion: str
    has_options: bool  # the completion names an option; else it is a candidate itself
    problem: str = ""  # why there is nothing to ask


@dataclass(frozen=True, slots=True)
class Judging:
    """How a completion is judged, once the shares of its candidates are known."""

    form: str = "probability"
    caution: float = 0.0
    no_option: float | None = None

    def __post_init__(self) -> None:
        """Raises InvalidArgument."""
        if self.form not in FORMS:
            raise InvalidArgument(field="form", problem=f"is {self.form!r}, allowed: {', '.join(FORMS)}")


@dataclass(frozen=True, slots=True)
class Scored:
    """One completion."""

    reward: float
    spread: float  # predicted standard deviation of the group's share of it


def read_rollouts(
    prompts: Sequence[Text], completions: Sequence[Text], columns: Mapping[str, Any], names: Columns
) -> list[Rollout]:
    """One for each completion, in order. Candidates of a prompt without options: its distinct completions in this call."""
    asked = [text_of(text).strip() for text in columns.get(names.question, prompts)]
    said = [text_of(text).strip() for text in completions]
    options, scales = (
        [*columns[name]] if name in columns else [None] * len(said) for name in (names.options, names.scale)
    )
    sampled: dict[str, dict[str, None]] = {}
    for question, completion in zip(asked, said, strict=True):
        if completion:
            sampled.setdefault(question, {})[completion] = None
    found = []
    for question, completion, given, scale in zip(asked, said, options, scales, strict=True):
        if not question or not (completion or given):
            found.append(Rollout(None, completion, bool(given), "empty prompt" if completion else "empty completion"))
            continue
        candidates = tuple(given) if given else tuple(sampled[question])
        shares = tuple(1 / len(candidates) for _ in candidates)  # not known: nobody looks at them
        asks = Question(question, candidates, shares, tuple(scale) if scale else None)
        found.append(Rollout(asks, completion, bool(given)))
    return found


def judge(
    rollout: Rollout, judging: Judging, shares: NDArray[np.floating], spreads: NDArray[np.floating]
) -> Scored | None:
    """`shares` and `spreads` of its candidates, (candidates,); None if the completion names no option."""
    assert rollout.question is not None
    if not rollout.has_options:
        number = rollout.question.options.index(rollout.completion)
        return Scored(float(shares[number]) - judging.caution * float(spreads[number]), float(spreads[number]))
    answer = read_answer(rollout.completion, rollout.question.options)
    if answer is None:
        return None if judging.no_option is None else Scored(judging.no_option, 0.0)
    value = FORMS[judging.form](answer, np.asarray(shares, np.float64), rollout.question.scale)
    spread = float(answer @ spreads)
    return Scored(value - judging.caution * spread, spread)
