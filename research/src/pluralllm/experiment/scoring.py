"""Scores how well a predictor fits each question of a group, given a few of the group's other answers as context.

The context is drawn at random several times; each choice is called a draw. A context with its target questions is called
an episode. The seed of a draw is the sha256 of the group, the size of the context and the number of the draw. So every
method and every training seed gets the same contexts. Validation and test groups are scored on all questions outside the
context. Questions that are withheld from all training are marked in the results, and do not count in the score of a
validation or test group. A training group gets its context from the questions that it trains on, and is scored on the
withheld questions.

In shapes, P is the group's option points, C context points, T target points, Q target questions and d the
model's width. A point is one option of one question.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.predictor.data import Episode, GroupData, log_softmax_by_question, make_points
from pluralllm.common.predictor.interface import PreferencePredictor
from pluralllm.common.predictor.metrics import js_distances
from pluralllm.common.predictor.model import load_weights, new_predictor
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment.stacked import Flat

OTHER_GROUPS = 5  # at most, whose contexts are tried in the place of a group's own


@dataclass(frozen=True, slots=True)
class Scored:
    """Score of one question of one group, for one draw of the context."""

    question: int  # its number within the group
    distance: float  # Jensen-Shannon distance, natural logarithm
    log_std: float  # logarithm of its options' root mean square predicted standard deviation; NaN if none is predicted
    error: float  # root mean square of predicted minus true share


def context_episode(data: GroupData, size: int, draw: int, pool: Iterable[int], targets: Iterable[int]) -> Episode:
    """Returns an episode whose context questions are drawn at random from the questions of `pool`.

    size: number of context questions. draw: number of the draw, which decides the random choice. targets: numbers of the
    possible target questions; a question that was drawn as context is left out.
    """
    key = hashlib.sha256(f"experiment/{data.group}/{size}/{draw}".encode()).digest()
    drawn = np.random.default_rng(int.from_bytes(key[:16])).permutation(np.asarray(list(pool))).tolist()
    context = tuple(drawn[:size])
    return Episode(context, tuple(q for q in targets if q not in set(context)))


def episode_of(spec: RunSpec, data: GroupData, group_part: str, size: int, draw: int) -> Episode:
    """Returns the episode that a group is scored on, for one context size and one draw of the context.

    group_part: train, validation or test. size: number of context questions. draw: number of the draw.
    A training group gets its context from the questions that it trains on; its targets are the withheld questions. Any other
    group gets its context from all its questions; its targets are the questions outside the context.
    """
    if group_part == "train":
        usable, withheld = data.split(spec.held_out)
        return context_episode(data, size, draw, usable, withheld)
    everything = range(len(data.questions))
    return context_episode(data, size, draw, everything, everything)


def own_episode(spec: RunSpec, data: GroupData, group_part: str, size: int, draw: int) -> Episode:
    """Returns the episode that a group is scored on, with only the target questions that count in the group's own score.

    The function has the parameters of `episode_of`. For a training group all target questions count. For any other group, only
    target questions that are not withheld from training count.
    """
    episode = episode_of(spec, data, group_part, size, draw)
    if group_part == "train":
        return episode
    withheld = set(data.split(spec.held_out)[1])
    return replace(episode, targets=tuple(q for q in episode.targets if q not in withheld))


class Scorer:
    """Scores one predictor on one group.

    The group's points are embedded once, and the embedded points serve as targets for every context.
    """

    def __init__(self, spec: RunSpec, values: Flat, data: GroupData, device: torch.device) -> None:
        self._take(predictor_of(spec, values), data, device)

    @classmethod
    def of_model(cls, model: PreferencePredictor, data: GroupData, device: torch.device) -> Self:
        """Returns the scorer of a predictor that is made already."""
        scorer = cls.__new__(cls)
        scorer._take(model, data, device)
        return scorer

    @torch.no_grad()
    def _take(self, model: PreferencePredictor, data: GroupData, device: torch.device) -> None:
        self._data, self._device = data, device
        self._model = model.to(device).eval()
        everything = range(len(data.questions))
        self._targets = self._model.embed(make_points([(data, everything)]).to(device))  # (1, P, d)

    def score(self, episode: Episode) -> list[Scored]:
        """Returns the score of each target question of the episode."""
        return scored(self._data, episode.targets, *self._predict(episode.targets, self._data, episode.context))

    def score_with_another(self, targets: Sequence[int], other: GroupData, context: Sequence[int]) -> list[Scored]:
        """Returns the scores of target questions that are predicted from another group's answers.

        targets: numbers of the target questions within the scored group. context: numbers of questions within the group `other`.
        """
        return scored(self._data, targets, *self._predict(targets, other, context))

    def shares(self, episode: Episode) -> dict[int, NDArray[np.float32]]:
        """Returns the predicted shares of the options of each target question, by the question's number within the group."""
        shares, _ = self._predict(episode.targets, self._data, episode.context)
        return dict(zip(episode.targets, np.split(shares, starts_of(self._data, episode.targets)[1:]), strict=True))

    @torch.no_grad()
    def _predict(
        self, targets: Sequence[int], answering: GroupData, context: Sequence[int]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns the predicted shares and the logarithms of their standard deviations, for all options of the target questions.

        Shapes: (T,) each, where T is the number of options of all target questions.
        """
        points = make_points([(answering, context)]).to(self._device)
        answers = torch.from_numpy(answering.shares[answering.points(context)]).to(self._device)[None]  # (1, C)
        index = torch.from_numpy(self._data.points(targets)).to(self._device)  # (T,)
        predicted = self._model.predict_embedded(self._model.encode_context(points, answers), self._targets[:, index])
        number = torch.from_numpy(np.repeat(np.arange(len(targets)), np.diff(self._data.offsets)[list(targets)]))
        log_shares = log_softmax_by_question(predicted.mean, number.to(self._device)[None], len(targets))  # (1, T)
        return log_shares[0].exp().cpu().numpy(), predicted.log_std[0].cpu().numpy()


def gain_of(
    scorer: Scorer,
    episodes: Sequence[Episode],
    others: Sequence[GroupData],
    context_of: Callable[[GroupData, int], Sequence[int]],
) -> tuple[float, float]:
    """Returns a group's alignment score with its own context, and with other groups' contexts, for the same target questions.

    episodes: the group's own episodes, one for each draw. others: the other groups; the second score is the mean over them.
    context_of: returns the context questions of another group for a draw.
    """
    own = alignment(map(scorer.score, episodes))
    foreign = (
        scorer.score_with_another(episode.targets, other, context_of(other, draw))
        for draw, episode in enumerate(episodes)
        for other in others
    )
    return own, alignment(foreign)


def next_groups(name: str, names: Iterable[str]) -> list[str]:
    """Returns the other groups whose contexts are tried in the place of a group's own: the next ones in alphabetical order.

    names: all groups that may lend their context, and the group itself. After the last one comes the first.
    """
    ordered = sorted(names)
    at = ordered.index(name)
    return [*ordered[at + 1 :], *ordered[:at]][:OTHER_GROUPS]


def predictor_of(spec: RunSpec, values: Flat) -> PreferencePredictor:
    """Returns the run spec's predictor with these parameter values (in layout order)."""
    shapes = layout_for(spec).tensors
    parts = np.split(values, np.cumsum([math.prod(shape) for _, shape in shapes])[:-1])
    model = new_predictor(spec.predictor, spec.embedding)
    load_weights(model, {name: part.reshape(shape) for (name, shape), part in zip(shapes, parts, strict=True)})
    return model


def chosen_questions(groups: dict[str, GroupData], count: int) -> set[str]:
    """Returns the ids of the N questions that were answered by the most groups, where N is `count`.

    If equally many groups answered two questions, the question with the lower id comes first.
    """
    answered = Counter(question.id for data in groups.values() for question in data.questions)
    return set(sorted(answered, key=lambda question_id: (-answered[question_id], question_id))[:count])


def scored(
    data: GroupData, targets: Sequence[int], shares: NDArray[np.float32], log_stds: NDArray[np.float32]
) -> list[Scored]:
    """Returns the score of each target question: its predicted shares compared with the group's answers.

    shares, log_stds: (T,), the predicted shares and the logarithms of their standard deviations. Each array holds the options
    of the first target question, then of the second, and so on; T is the number of all options.
    """
    starts, sizes = starts_of(data, targets), np.diff(data.offsets)[list(targets)]  # (Q,) each
    true = data.shares[data.points(targets)]  # (T,)
    errors = shares / np.repeat(np.add.reduceat(shares, starts), sizes) - true  # (T,)
    squares = np.add.reduceat(errors.astype(np.float64) ** 2, starts) / sizes  # (Q,)
    variances = np.add.reduceat(np.exp(2 * log_stds.astype(np.float64)), starts) / sizes  # (Q,)
    columns = (js_distances(shares, true, starts), np.log(variances) / 2, np.sqrt(squares))
    return [Scored(q, *row) for q, row in zip(targets, zip(*(c.tolist() for c in columns), strict=True), strict=True)]


def starts_of(data: GroupData, targets: Sequence[int]) -> NDArray[np.int64]:
    """Returns the index of each target question's first option in one array that holds the options of all target questions.

    The array holds the options of the first target question, then the options of the second, and so on.
    targets: numbers of the target questions within the group. Shape of the result: (Q,), Q target questions.
    """
    sizes = np.diff(data.offsets)[list(targets)]
    starts: NDArray[np.int64] = np.cumsum(sizes) - sizes
    return starts


def alignment(draws: Iterable[Iterable[Scored]]) -> float:
    """Alignment score: 1 minus the mean Jensen-Shannon distance over the scored questions of all draws."""
    distances = [score.distance for draw in draws for score in draw]
    return 1 - sum(distances) / len(distances)
