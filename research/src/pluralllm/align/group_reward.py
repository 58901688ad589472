"""Rewards a completion by the share of a group that is predicted to prefer it, for GRPOTrainer and other trainers of TRL.

Each group's context is read once. A call embeds only new texts, and embeds them once for all groups.
"""

import itertools
import threading
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pluralllm.align.answers import Reader
from pluralllm.align.context_check import ContextGainWarning, warn
from pluralllm.align.plural_predictor import PluralConfig, PluralPredictor
from pluralllm.align.ranks import Ranks
from pluralllm.align.rollouts import COLUMNS, Columns, Judging, Rollout, Scored, Text, judge, read_rollouts
from pluralllm.align.stated import folded
from pluralllm.client.data.answers import read_answers
from pluralllm.client.work.train import pick_device
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.predictor.group_predictor import GroupPredictor, PredictedAnswer
from pluralllm.common.process.environment import with_home
from pluralllm.common.words.context_gain import check_context_gain
from pluralllm.common.words.questions import Question

DEFAULT_CACHE = Path("~/.cache/pluralllm")
NO_OPTION = "names no option"
Key = tuple[str, Question]  # group, question
Identity = tuple[str, tuple[str, ...]]  # of a question: its text, and its options in any order


class GroupReward:
    """TRL reward function: takes prompts and completions, and returns one reward for each completion.

    The reward is None for a completion that cannot be scored. Several threads may call one object; they take turns. An object
    can be pickled: another process gets the weights, the contexts and the settings, and opens the embedding model, the cache
    and the device again.
    """

    def __init__(
        self,
        model: PluralPredictor | str | Path,
        contexts: Mapping[str, Sequence[Question] | str | Path],
        *,
        group: str | None = None,
        group_column: str = "group",
        columns: Columns = COLUMNS,
        form: str = "probability",
        caution: float = 0.0,
        no_option: float | None = None,
        read: Reader | None = None,
        embedding_model_path: str | Path | None = None,
        cache: str | Path = DEFAULT_CACHE,
        device: str = "auto",
        allow_embedder: str | None = None,
        accept_no_context_gain: bool = False,
    ) -> None:
        """Creates a reward function from a model and, for each group, its context.

        model: a loaded model, or the folder or Hub id to load it from.
        contexts: for each group a few answered questions, or the path of its canonical data file.
        group: the group that every completion is scored for. If it is None, the only group in `contexts` is used; if
            there are several, the example's column `group_column` names the group.
        columns: names of the data set's columns. If an example has options, its completion names one option, a ranking of the
            options, or shares. If an example has no options, the candidates are the distinct completions of the same prompt
            in one call, as GRPO and RLOO sample them. In a distributed training every rank must make the same calls, because
            the candidates of all ranks count. A single candidate gets its predicted mean, which can be compared only
            with other calls for the same prompt.
        form: name of the reward form, which turns an answer to given options into a reward; see reward_forms. For sampled
            completions the reward is always the predicted share.
        caution: factor of the predicted spread that is subtracted from the reward; for the presets attention and paper only.
        no_option: reward of a completion that names no option; None leaves the completion out of the training step.
        read: a function of a completion and its options that returns a share for each option, or None; None reads as
            answers.read_answer does.
        embedding_model_path: folder of the embedding model; None looks it up by the model's own name.
        cache: folder of embedded texts. device: device for torch; "auto" picks one.
        allow_embedder: package whose code may make the vectors, NAME or NAME==VERSION. A model that names one needs it.
        accept_no_context_gain: whether to take a model whose predictions do not depend on the group, with a ContextGainWarning.
        Otherwise such a model is refused with InvalidModel. If the model does not say its context gain, there is a warning.
        Raises InvalidArgument, InvalidData, InvalidModel, TooFewQuestions, ModelUnavailable or EmbeddingMismatch.
        """
        self._settings = {name: value for name, value in locals().items() if name not in ("self", "model", "contexts")}
        self._taking_turns = threading.RLock()  # the embedder and the model serve one thread at a time
        _check(contexts, group)
        self._judging = Judging(form, caution, no_option, read)
        self._group = next(iter(contexts)) if group is None and len(contexts) == 1 else group
        self._group_column, self._columns = group_column, columns
        self._model = model if isinstance(model, PluralPredictor) else PluralPredictor.from_pretrained(model)
        if caution and not self._model.predictor.predicts_spread:
            problem = "has no effect: this model has one spread; only the presets attention and paper predict it"
            raise InvalidArgument(field="caution", problem=problem)
        name = str(model) if isinstance(model, str | Path) else f"{self.config.run}@{self.config.version}"
        self.warning = check_context_gain(name, self.config.context_gain, accept=accept_no_context_gain)
        warn(self.warning)
        chosen = pick_device(device)
        self._embedder = self._model.checked_embedder(embedding_model_path, _folder_of(cache), chosen, allow_embedder)
        self._contexts = questions = {name: tuple(_questions(context)) for name, context in contexts.items()}
        self._full_model = self._model.in_full_precision()
        self._predictors = {name: self._predictor(name, answers, chosen) for name, answers in questions.items()}
        self._known = {name: frozenset(map(identity_of, answers)) for name, answers in questions.items()}
        self._ranks = Ranks()
        self.unscored: Counter[str] = Counter()  # completions that got None, by reason
        # A trainer uses this name in its logs.
        self.__name__ = "group_reward" if self._group is None else f"reward_{self._group.lower().replace(' ', '_')}"

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float | None]:
        """Returns one reward for each completion; None for a completion that cannot be scored.

        columns: further columns of the data set, by name, as TRL passes them.
        Raises InvalidArgument for a group that has no context.
        """
        scores = self.score(prompts, completions, **columns)
        if (log_metric := columns.get("log_metric")) is not None:
            log_metric(f"{self.__name__}/unscored", sum(score is None for score in scores) / max(1, len(scores)))
        return [None if score is None else score.reward for score in scores]

    def score(
        self, prompts: Sequence[Text], completions: Sequence[Text], of_group: str | None = None, **columns: Any
    ) -> list[Scored | None]:
        """Returns a reward and its predicted spread for each completion; None for a completion that cannot be scored.

        The attribute `unscored` counts the completions that could not be scored, by reason.
        columns: further columns of the data set, by name, as TRL passes them. of_group: the group that every completion is
        scored for. None means the group that the constructor got; if the constructor got no group, each example names its
        group.
        """
        rollouts = read_rollouts(prompts, completions, columns, self._columns, self._ranks)
        groups = self._groups(len(rollouts), columns) if of_group is None else [of_group] * len(rollouts)
        keys = {(group, r.question) for group, r in zip(groups, rollouts, strict=True) if r.question is not None}
        answers = self.predict(sorted(keys, key=lambda key: (key[0], key[1].id)))
        with self._taking_turns:  # `unscored` counts
            return [self._judge(rollout, group, answers) for group, rollout in zip(groups, rollouts, strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        """Returns what another process needs to make this object again. Files, locks and devices belong to one process."""
        return {
            "model": self.config.to_dict(),
            "weights": {name: weight.cpu() for name, weight in self._model.state_dict().items()},
            "contexts": self._contexts,
            "settings": self._settings,
            "unscored": self.unscored,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Makes the object again in another process. Raises what the constructor raises, such as ModelUnavailable."""
        model = PluralPredictor(PluralConfig(**state["model"])).eval()
        model.load_state_dict(state["weights"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ContextGainWarning)  # the first process has warned
            GroupReward.__init__(self, model, state["contexts"], **state["settings"])
        self.unscored.update(state["unscored"])

    @property
    def config(self) -> PluralConfig:
        """Configuration of the model: its run, version, predictor and embedding."""
        config: PluralConfig = self._model.config
        return config

    @property
    def embedding_notes(self) -> tuple[str, ...]:
        """Sentences about what the embedding model could not see in the texts so far: cut ends, unknown or equal texts."""
        return self._embedder.notes()

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(self._predictors)

    @property
    def only_group(self) -> str:
        """The group that every completion is scored for. Raises InvalidArgument if the examples name the group instead."""
        if self._group is None:
            raise InvalidArgument(field="group", problem=f"is not given; one of: {', '.join(self._predictors)}")
        return self._group

    def context_of(self, group: str) -> frozenset[Identity]:
        """Returns the questions of a group's context, as `identity_of` names them."""
        return self._known[group]

    def predict(self, keys: Sequence[Key]) -> dict[Key, PredictedAnswer]:
        """Returns the predicted answer for each key, a pair of a group and a question.

        If a question in `keys` has true shares, they are not used.
        """
        numbers = {question: number for number, question in enumerate(dict.fromkeys(q for _, q in keys))}
        if not numbers:
            return {}
        with self._taking_turns:
            return self._predicted(keys, numbers)

    def _predicted(self, keys: Sequence[Key], numbers: Mapping[Question, int]) -> dict[Key, PredictedAnswer]:
        """Returns the predicted answer for each key. numbers: the number of each question among the distinct ones."""
        questions = list(numbers)
        features = next(iter(self._predictors.values())).features(questions)  # the same for all groups
        ends = np.cumsum([len(question.options) for question in questions])
        answers: dict[Key, PredictedAnswer] = {}
        for group, predictor in self._predictors.items():
            asked = [question for name, question in keys if name == group]
            rows = [range(ends[numbers[q]] - len(q.options), ends[numbers[q]]) for q in asked]
            predicted = predictor.predict_features(features[[*itertools.chain(*rows)]], asked)
            answers |= {(group, question): answer for question, answer in zip(asked, predicted, strict=True)}
        return answers

    def _predictor(self, group: str, context: Sequence[Question], device: torch.device) -> GroupPredictor:
        return GroupPredictor(self._full_model, self._embedder, group, context, device, self._model.config.min_context)

    def _judge(self, rollout: Rollout, group: str, answers: Mapping[Key, PredictedAnswer]) -> Scored | None:
        scored = None
        if rollout.question is not None:
            answer = answers[group, rollout.question]
            alone = len(rollout.question.options) == 1
            scored = judge(rollout, self._judging, answer.means if alone else answer.shares, answer.spreads)
        if scored is None:
            self.unscored[rollout.problem or NO_OPTION] += 1
        return scored

    def _groups(self, count: int, columns: Mapping[str, Any]) -> list[str]:
        if self._group is not None:
            return [self._group] * count
        named = columns.get(self._group_column)
        if named is None:
            problem = f"the data set has no column {self._group_column!r}; give group=, or the column's name"
            raise InvalidArgument(field="group_column", problem=problem)
        for name in named:
            if name not in self._predictors:
                raise InvalidArgument(field=self._group_column, problem=_unknown(name, self._predictors))
        return list(named)


def identity_of(question: Question) -> Identity:
    """Returns what makes a question the same one whatever the order of its options and the spelling of its letters."""
    return folded(question.text).strip(), tuple(sorted(folded(option).strip() for option in question.options))


def _folder_of(cache: str | Path) -> Path:
    """Returns the folder of embedded texts. Raises InvalidArgument if it begins with ~ and no home folder is known."""
    try:
        return with_home(Path(cache))
    except ValueError as error:
        raise InvalidArgument(field="cache", problem=f"{cache} {error}") from error


def _questions(context: Sequence[Question] | str | Path) -> Sequence[Question]:
    return read_answers(Path(context)) if isinstance(context, str | Path) else context


def _check(contexts: Mapping[str, Any], group: str | None) -> None:
    """Raises InvalidArgument if there is no context, or none of the group."""
    if not contexts:
        raise InvalidArgument(field="contexts", problem="is empty; give a few answered questions of a group")
    if group is not None and group not in contexts:
        raise InvalidArgument(field="group", problem=_unknown(group, contexts))


def _unknown(name: object, contexts: Mapping[str, Any]) -> str:
    return f"there is no context of group {name!r}; there is of: {', '.join(sorted(contexts))}"
