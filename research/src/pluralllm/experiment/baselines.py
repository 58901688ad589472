"""Guesses that need no predictor. A method that does not beat them has learnt nothing of use."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.predictor.data import Episode, GroupData
from pluralllm.common.words.questions import is_held_out
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment.results import QuestionKind
from pluralllm.experiment.scoring import Scored, scored
from pluralllm.experiment.spec import BASELINES

Guess = NDArray[np.float32]
Guesser = Callable[[GroupData, tuple[int, ...], int], Guess]  # group, context, question
UNIFORM, NEAREST, TRAINING_MEAN = BASELINES


def uniform(data: GroupData, _context: tuple[int, ...], question: int) -> Guess:
    """Every option alike."""
    count = len(data.questions[question].options)
    return np.full(count, 1 / count, dtype=np.float32)


def nearest(data: GroupData, context: tuple[int, ...], question: int) -> Guess:
    """The group's own answer to the nearest context question (cosine of the mean of its options' vectors) with as many
    options; uniform where there is none."""
    size = len(data.questions[question].options)
    alike = [q for q in context if len(data.questions[q].options) == size]
    if not alike:
        return uniform(data, context, question)
    wanted = _direction(data, question)
    best = max(alike, key=lambda q: float(_direction(data, q) @ wanted))
    return np.asarray(data.questions[best].shares, dtype=np.float32)


class TrainingMean:
    """The mean of the training groups' answers to the same question, over what they train on; uniform where nobody answered.

    It needs their data in one place: no federation could have it. arXiv 2503.09925 does not report it.
    """

    def __init__(self, spec: RunSpec, groups: dict[str, GroupData]) -> None:
        self._known: dict[str, list[Guess]] = {}
        self._holdout_share = spec.evaluation.holdout_share
        for name in spec.groups.train:
            data = groups[name]
            for number in data.split(spec.evaluation.holdout_share)[0]:
                question = data.questions[number]
                self._known.setdefault(question.id, []).append(np.asarray(question.shares, dtype=np.float32))

    def __call__(self, data: GroupData, context: tuple[int, ...], question: int) -> Guess:
        known = self._known.get(data.questions[question].id)
        return uniform(data, context, question) if known is None else np.mean(known, axis=0)

    def kind_of(self, data: GroupData, question: int) -> QuestionKind:
        """What training could know of this question."""
        known = data.questions[question].id
        if is_held_out(known, self._holdout_share):
            return QuestionKind.WITHHELD
        return QuestionKind.ANSWERED if known in self._known else QuestionKind.UNANSWERED


def score_guesses(guess: Guesser, data: GroupData, episodes: list[Episode]) -> list[list[Scored]]:
    """As `Scorer` does for a predictor: each episode's scores."""
    found = []
    for episode in episodes:
        shares = np.concatenate([guess(data, episode.context, question) for question in episode.targets])
        found.append(scored(data, episode.targets, shares, np.full_like(shares, np.nan)))
    return found


def _direction(data: GroupData, question: int) -> Guess:
    rows = data.embeddings[data.offsets[question] : data.offsets[question + 1]].mean(0)
    length = float(np.linalg.norm(rows))
    direction: Guess = rows / length if length else rows
    return direction
