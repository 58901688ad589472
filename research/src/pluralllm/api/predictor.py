"""A published model version that predicts a group's answers: load it, ask it, and measure whether it reads its context."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from pluralllm.align.group_reward import DEFAULT_CACHE
from pluralllm.align.plural_predictor import PluralConfig, PluralPredictor
from pluralllm.api.arguments import all_name_arguments
from pluralllm.api.surveys import Answers, Asked, answers_of, path_of, question_of
from pluralllm.client.work.train import pick_device
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.predictor.data import group_data
from pluralllm.common.predictor.embedding import Embedder
from pluralllm.common.predictor.group_predictor import GroupPredictor
from pluralllm.common.words.questions import Question
from pluralllm.experiment.scoring import Scorer, context_episode, gain_of, next_groups

DRAWS = 3


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer that a group is predicted to give to a question."""

    question: Question
    shares: dict[str, float]  # by option; they sum to 1
    spreads: dict[str, float]  # by option: standard deviation of the share; a constant unless the model predicts it


@all_name_arguments
class PreferencePredictor:
    """A model version together with its embedding model. One thread at a time may use it."""

    def __init__(self, model: PluralPredictor, embedder: Embedder, device: str = "auto") -> None:
        """Joins a model and the embedder of its texts; `from_pretrained` makes both."""
        self.model, self._embedder, self._device = model, embedder, pick_device(device)
        self._full = model.in_full_precision()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        embedding_model_path: str | Path | None = None,
        cache: str | Path = DEFAULT_CACHE,
        device: str = "auto",
        allow_embedder: str | None = None,
        **options: Any,
    ) -> Self:
        """Loads a model that was exported, from a folder or by its id on the Hub.

        embedding_model_path: folder of the embedding model; None looks it up by its own name. cache: folder of embedded texts.
        device: for torch. allow_embedder: package whose code may make the vectors, NAME or NAME==VERSION; a model whose run used
        an embedder of another package needs it. options: those of transformers, such as revision or token.
        Raises InvalidArgument if `allow_embedder` is needed; InvalidModel if there is no such model; ModelUnavailable or
        EmbeddingMismatch for the embedding model.
        """
        model = PluralPredictor.from_pretrained(name, **options)
        path = None if embedding_model_path is None else path_of("embedding_model_path", embedding_model_path)
        embedder = model.checked_embedder(path, path_of("cache", cache), pick_device(device), allow_embedder)
        return cls(model, embedder, device)

    @property
    def config(self) -> PluralConfig:
        """The model's run, version, and the numbers of context questions that it was trained and scored with."""
        config: PluralConfig = self.model.config
        return config

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes a folder that `from_pretrained` reads, and returns it."""
        path = path_of("folder", folder)
        self.model.save_pretrained(path)
        return path

    def predict(self, context: Answers, questions: Sequence[Asked]) -> list[Prediction]:
        """Predicts how a group answers questions, from some of its answers.

        context: the group's answered questions, or the path of its private file. questions: questions, whose own answers are
        not looked at, or pairs of a text and its options.
        Raises TooFewQuestions if the context is smaller than the model needs; InvalidData for a file with problems.
        """
        asked = [question_of(one) for one in questions]
        group = GroupPredictor(
            self._full, self._embedder, "context", answers_of(context), self._device, self.config.min_context
        )
        return [
            Prediction(question, _by_option(question, answer.shares), _by_option(question, answer.spreads))
            for question, answer in zip(asked, group.predict(asked), strict=True)
        ]

    def context_gain(
        self, groups: Mapping[str, Answers], *, context_questions: int | None = None, draws: int = DRAWS
    ) -> dict[str, float]:
        """Returns each group's context gain: its alignment score with its own context minus that with other groups' contexts.

        Near 0, the predictions do not depend on the group. At most five other groups lend their context.
        groups: at least two groups' answers. context_questions: None is the number that the model was scored with.
        draws: number of contexts that are drawn for each group.
        Raises InvalidArgument if there are too few groups, or too few questions for the context and one question besides.
        """
        size = self.config.context_questions if context_questions is None else context_questions
        answers = {name: answers_of(group) for name, group in groups.items()}
        _check(answers, size, self.config.min_context)
        data = {
            name: group_data(name, given, self._embedder.embed_questions(given, lambda _done, _all: None))
            for name, given in answers.items()
        }
        everything = {name: range(len(own.questions)) for name, own in data.items()}
        episodes = {
            name: [context_episode(own, size, draw, everything[name], everything[name]) for draw in range(draws)]
            for name, own in data.items()
        }
        gains = {}
        for name, own in data.items():
            with_own, with_another = gain_of(
                Scorer.of_model(self._full, own, self._device),
                episodes[name],
                [data[other] for other in next_groups(name, data)],
                lambda other, draw: episodes[other.group][draw].context,
            )
            gains[name] = with_own - with_another
        return gains


def _check(answers: Mapping[str, Sequence[Question]], size: int, least: int) -> None:
    if len(answers) < 2:
        raise InvalidArgument(field="groups", problem="needs at least 2 groups, whose contexts are exchanged")
    if size < max(1, least):
        raise InvalidArgument(field="context_questions", problem=f"is {size}, the model needs at least {max(1, least)}")
    for name, given in answers.items():
        if len(given) <= size:
            problem = f"{name} has {len(given)} questions; {size} of context and at least one to predict are needed"
            raise InvalidArgument(field="groups", problem=problem)


def _by_option(question: Question, numbers: "np.typing.NDArray[np.float32]") -> dict[str, float]:
    return dict(zip(question.options, numbers.tolist(), strict=True))
