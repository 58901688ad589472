"""How well a predictor fits each question of a group, given a few of the group's other answers.

A context is drawn by sha256 of group, size and number of the draw: the same for every method and every seed of training.
Test and validation groups are scored on all their other questions.
Training groups have their context from the questions they train on, and are scored on those that nobody trains on.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pluralllm.common.data import Episode, GroupData, log_softmax_by_question, make_batch
from pluralllm.common.metrics import js_distance
from pluralllm.common.spec import RunSpec
from pluralllm.experiment.stacked import Flat, StackedPredictors


@dataclass(frozen=True, slots=True)
class Scored:
    """One question of one group in one draw."""

    question: int  # its number within the group
    distance: float  # Jensen-Shannon distance, natural logarithm
    log_std: float  # mean of the predicted log standard deviations of its options; NaN for what predicts none
    error: float  # root mean square of predicted minus true share


def context_episode(data: GroupData, size: int, draw: int, pool: Iterable[int], targets: Iterable[int]) -> Episode:
    """`size` questions of the pool, and the targets that are not among them."""
    key = hashlib.sha256(f"experiment/{data.group}/{size}/{draw}".encode()).digest()
    drawn = np.random.default_rng(int.from_bytes(key[:16])).permutation(np.asarray(list(pool))).tolist()
    context = tuple(drawn[:size])
    return Episode(context, tuple(q for q in targets if q not in set(context)))


def episode_of(spec: RunSpec, data: GroupData, part: str, size: int, draw: int) -> Episode:
    """Of a training group: context from what it trains on, targets nobody trains on. Of another: all but the context."""
    trained, held_out = data.split(spec.evaluation.holdout_share)
    if part == "train":
        return context_episode(data, size, draw, trained, held_out)
    everything = range(len(data.questions))
    return context_episode(data, size, draw, everything, everything)


@torch.no_grad()
def score_model(
    spec: RunSpec, values: Flat, data: GroupData, episodes: list[Episode], device: torch.device
) -> list[list[Scored]]:
    """For each episode its targets' scores."""
    stack = StackedPredictors(spec, [values], device)
    return [
        [scored(data, number, shares, log_std) for number, shares, log_std in _predict(stack, data, episode, device)]
        for episode in episodes
    ]


@torch.no_grad()
def predicted_shares(
    spec: RunSpec, values: Flat, data: GroupData, episode: Episode, device: torch.device
) -> dict[int, NDArray[np.float32]]:
    """The predicted share of each option, by the target question's number."""
    stack = StackedPredictors(spec, [values], device)
    return {number: shares for number, shares, _ in _predict(stack, data, episode, device)}


def chosen_questions(groups: dict[str, GroupData], count: int) -> set[str]:
    """Ids of the questions that most of these groups answered, among equals the first by id."""
    answered = Counter(question.id for data in groups.values() for question in data.questions)
    return set(sorted(answered, key=lambda known: (-answered[known], known))[:count])


def _predict(
    stack: StackedPredictors, data: GroupData, episode: Episode, device: torch.device
) -> Iterator[tuple[int, NDArray[np.float32], float]]:
    """Each target question's number, shares (options,) and mean log-std."""
    batch = make_batch([(data, episode)]).to(device)
    predicted = stack(batch, training=False)
    log_shares = log_softmax_by_question(predicted.mean, batch.target_question, batch.questions)  # (1, T)
    shares, spreads = log_shares[0].exp().cpu().numpy(), predicted.log_std[0].cpu().numpy()  # (T,) each
    at = 0
    for number in episode.targets:
        points = slice(at, at + len(data.questions[number].options))
        yield number, shares[points], float(spreads[points].mean())
        at = points.stop


def scored(data: GroupData, question: int, guess: NDArray[np.float32], log_std: float) -> Scored:
    """A guess held against the group's answer."""
    true = np.asarray(data.questions[question].shares)
    error = math.sqrt(float(np.mean((guess / guess.sum() - true) ** 2)))
    return Scored(question, js_distance(guess, true), log_std, error)


def alignment(draws: Iterable[Iterable[Scored]]) -> float:
    """1 - mean distance over the questions of all draws."""
    distances = [each.distance for draw in draws for each in draw]
    return 1 - sum(distances) / len(distances)
