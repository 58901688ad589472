"""How well a predictor fits each question of a group, given a few of the group's other answers.

A context is drawn by sha256 of group, size and number of the draw: the same for every method and every seed of training.
Test and validation groups are scored on all their other questions; those that are withheld from training are told apart from
the others in the results, and are no part of a group's own score.
Training groups have their context from the questions they train on, and are scored on those that nobody trains on.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pluralllm.common.predictor.data import Episode, GroupData, log_softmax_by_question, make_batch
from pluralllm.common.predictor.metrics import js_distances
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment.stacked import Flat, StackedPredictors


@dataclass(frozen=True, slots=True)
class Scored:
    """One question of one group in one draw."""

    question: int  # its number within the group
    distance: float  # Jensen-Shannon distance, natural logarithm
    log_std: float  # of the root mean square of its options' predicted standard deviations; NaN for what predicts none
    error: float  # root mean square of predicted minus true share


def context_episode(data: GroupData, size: int, draw: int, pool: Iterable[int], targets: Iterable[int]) -> Episode:
    """`size` questions of the pool, and the targets that are not among them."""
    key = hashlib.sha256(f"experiment/{data.group}/{size}/{draw}".encode()).digest()
    drawn = np.random.default_rng(int.from_bytes(key[:16])).permutation(np.asarray(list(pool))).tolist()
    context = tuple(drawn[:size])
    return Episode(context, tuple(q for q in targets if q not in set(context)))


def episode_of(spec: RunSpec, data: GroupData, part: str, size: int, draw: int) -> Episode:
    """Of a training group: context from what it trains on, targets that are withheld. Of another: all but the context."""
    usable, withheld = data.split(spec.evaluation.holdout_share)
    if part == "train":
        return context_episode(data, size, draw, usable, withheld)
    everything = range(len(data.questions))
    return context_episode(data, size, draw, everything, everything)


def own_episode(spec: RunSpec, data: GroupData, part: str, size: int, draw: int) -> Episode:
    """The targets of `episode_of` that make up the group's own score: of a group that does not train, those not withheld."""
    episode = episode_of(spec, data, part, size, draw)
    if part == "train":
        return episode
    withheld = set(data.split(spec.evaluation.holdout_share)[1])
    return replace(episode, targets=tuple(q for q in episode.targets if q not in withheld))


class Scorer:
    """One predictor and one group. The group's points are embedded once, as targets of every context."""

    @torch.no_grad()
    def __init__(self, spec: RunSpec, values: Flat, data: GroupData, device: torch.device) -> None:
        self._data, self._device = data, device
        self._stack = StackedPredictors(spec, [values], device)
        points = torch.from_numpy(data.embeddings).to(device)[None]  # (1, P, D)
        self._targets = self._stack.embed(points, points.new_zeros(points.shape[:2]))  # (1, P, d)

    def score(self, episode: Episode) -> list[Scored]:
        """The targets' scores."""
        return scored(self._data, episode.targets, *self._predict(episode))

    def shares(self, episode: Episode) -> dict[int, NDArray[np.float32]]:
        """The predicted share of each option, by the target question's number."""
        shares, _ = self._predict(episode)
        return dict(zip(episode.targets, np.split(shares, starts_of(self._data, episode.targets)[1:]), strict=True))

    @torch.no_grad()
    def _predict(self, episode: Episode) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Shares and log standard deviations of the targets' options, (T,) each."""
        batch = make_batch([(self._data, episode)]).to(self._device)
        context = self._stack.embed(batch.context, batch.context_shares)  # (1, C, d)
        targets = self._targets[:, torch.from_numpy(self._data.points(episode.targets)).to(self._device)]  # (1, T, d)
        predicted = self._stack.predict(torch.cat([context, targets], dim=1), batch.context_is_real, training=False)
        log_shares = log_softmax_by_question(predicted.mean, batch.target_question, batch.questions)  # (1, T)
        return log_shares[0].exp().cpu().numpy(), predicted.log_std[0].cpu().numpy()


def chosen_questions(groups: dict[str, GroupData], count: int) -> set[str]:
    """Ids of the questions that most of these groups answered, among equals the first by id."""
    answered = Counter(question.id for data in groups.values() for question in data.questions)
    return set(sorted(answered, key=lambda known: (-answered[known], known))[:count])


def scored(
    data: GroupData, targets: Sequence[int], shares: NDArray[np.float32], log_stds: NDArray[np.float32]
) -> list[Scored]:
    """Guesses, the options of one target after those of the other, held against the group's answers."""
    starts, sizes = starts_of(data, targets), np.diff(data.offsets)[list(targets)]  # (Q,) each
    true = data.shares[data.points(targets)]  # (T,)
    errors = shares / np.repeat(np.add.reduceat(shares, starts), sizes) - true  # (T,)
    squares = np.add.reduceat(errors.astype(np.float64) ** 2, starts) / sizes  # (Q,)
    variances = np.add.reduceat(np.exp(2 * log_stds.astype(np.float64)), starts) / sizes  # (Q,)
    columns = (js_distances(shares, true, starts), np.log(variances) / 2, np.sqrt(squares))
    return [Scored(q, *row) for q, row in zip(targets, zip(*(c.tolist() for c in columns), strict=True), strict=True)]


def starts_of(data: GroupData, targets: Sequence[int]) -> NDArray[np.int64]:
    """Where each target's options begin, one target after another. (Q,)"""
    sizes = np.diff(data.offsets)[list(targets)]
    starts: NDArray[np.int64] = np.cumsum(sizes) - sizes
    return starts


def alignment(draws: Iterable[Iterable[Scored]]) -> float:
    """1 - mean distance over the questions of all draws."""
    distances = [each.distance for draw in draws for each in draw]
    return 1 - sum(distances) / len(distances)
