"""Baselines: guesses that need no predictor. A method that does not beat the baselines has learnt nothing useful."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.predictor.data import Episode, GroupData
from pluralllm.common.words.questions import Question, spelled_alike
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment.results import QuestionKind
from pluralllm.experiment.scoring import Scored, scored
from pluralllm.experiment.spec import BASELINES

Guess = NDArray[np.float32]
Guesser = Callable[[GroupData, tuple[int, ...], int], Guess]  # group, context, question
UNIFORM, NEAREST, TRAINING_MEAN = BASELINES


def uniform(data: GroupData, _context: tuple[int, ...], question: int) -> Guess:
    """Guesses the same share for every option of a question."""
    count = len(data.questions[question].options)
    return np.full(count, 1 / count, dtype=np.float32)


def nearest(data: GroupData, context: tuple[int, ...], question: int) -> Guess:
    """Guesses that a group answers a question as it answered the most similar context question with the same number of options.

    Similarity is the cosine between the mean option vectors of two questions. If no context question has the same number of
    options, the guess is uniform.
    """
    size = len(data.questions[question].options)
    alike = [q for q in context if len(data.questions[q].options) == size]
    if not alike:
        return uniform(data, context, question)
    direction = _direction(data, question)
    best = max(alike, key=lambda q: float(_direction(data, q) @ direction))
    return np.asarray(data.questions[best].shares, dtype=np.float32)


class TrainingMean:
    """Guesses the mean of the training groups' answers to the same question.

    If no training group trains on the question, the guess is the same share for every option.
    The guess needs the groups' data in one place, which no federation has. arXiv 2503.09925 does not report this baseline.
    """

    def __init__(self, spec: RunSpec, groups: dict[str, GroupData], training: Sequence[str]) -> None:
        """Keeps the answers to the questions that training may use. training: names of the training groups."""
        self._known: dict[str, list[dict[str, float]]] = {}  # by question: each training group's share of each option
        self._held_out = spec.held_out
        for name in training:
            data = groups[name]
            for number in data.split(spec.held_out)[0]:
                question = data.questions[number]
                shares = dict(zip(_option_names(question), question.shares, strict=True))
                self._known.setdefault(question.key, []).append(shares)

    def __call__(self, data: GroupData, context: tuple[int, ...], question: int) -> Guess:
        options = _option_names(data.questions[question])
        answers = [
            np.asarray([shares[option] for option in options], dtype=np.float32)  # in the order of this group's options
            for shares in self._known.get(data.questions[question].key, [])
            if shares.keys() == set(options)  # a question in another language has other options
        ]
        return np.mean(answers, axis=0) if answers else uniform(data, context, question)

    def kind_of(self, data: GroupData, question: int) -> QuestionKind:
        """Returns the kind of a question, which says whether training could use the question.

        Either a training group answered the question, or no training group answered it, or the question is withheld from all
        training.
        """
        if self._held_out.includes(data.questions[question]):
            return QuestionKind.WITHHELD
        return QuestionKind.ANSWERED if data.questions[question].key in self._known else QuestionKind.UNANSWERED


def _option_names(question: Question) -> list[str]:
    """Returns the options' texts in one spelling; as they are if two options then had one text."""
    alike = [spelled_alike(option) for option in question.options]
    return alike if len(set(alike)) == len(alike) else list(question.options)


def score_guesses(guess: Guesser, data: GroupData, episodes: list[Episode]) -> list[list[Scored]]:
    """Returns, for each episode, the scores of a baseline's guesses for the target questions.

    `Scorer` in scoring.py computes such scores for a predictor.
    """
    scores = []
    for episode in episodes:
        shares = np.concatenate([guess(data, episode.context, question) for question in episode.targets])
        scores.append(scored(data, episode.targets, shares, np.full_like(shares, np.nan)))
    return scores


def _direction(data: GroupData, question: int) -> Guess:
    rows = data.embeddings[data.offsets[question] : data.offsets[question + 1]].mean(0)
    length = float(np.linalg.norm(rows))
    direction: Guess = rows / length if length else rows
    return direction
