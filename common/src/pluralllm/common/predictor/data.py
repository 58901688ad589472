"""Holds a group's questions as arrays, draws training episodes from them, and pads episodes to batches.

A point is one option of one question. All options of a question always stay together. Masks mark which points are real and which
are padding; code must never guess this from a point's content.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pluralllm.common.errors.tree import TooFewQuestions
from pluralllm.common.words.questions import Question, is_held_out
from pluralllm.common.words.spec import Episodes


@dataclass(frozen=True, slots=True, repr=False)
class GroupData:
    """The embedded questions of one group, each question once.

    Shapes: Q questions, P points (one for each option of each question), D numbers in an embedding.
    """

    group: str
    questions: tuple[Question, ...]
    embeddings: NDArray[np.float32]  # (P, D)
    shares: NDArray[np.float32]  # (P,)
    offsets: NDArray[np.int64]  # (Q + 1,): the points of question q are offsets[q] .. offsets[q + 1] - 1

    def __repr__(self) -> str:
        return f"GroupData({len(self.questions)} questions)"  # private: shows neither the group nor any content

    def points(self, questions: Sequence[int]) -> NDArray[np.int64]:
        """Returns the point numbers of these questions, in the order of the questions. Shape: (their points,)."""
        return np.concatenate([np.arange(self.offsets[q], self.offsets[q + 1]) for q in questions])

    def split(self, holdout_share: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns the numbers of the questions for training, and of those that are held out from training.

        A hash of the question decides, so every group holds out the same questions.
        holdout_share: share of all questions to hold out, 0 .. 1.
        """
        held_out = [is_held_out(question.id, holdout_share) for question in self.questions]
        numbers = range(len(self.questions))
        return tuple(q for q in numbers if not held_out[q]), tuple(q for q in numbers if held_out[q])


def group_data(group: str, questions: Sequence[Question], embedded: Sequence[NDArray[np.float32]]) -> GroupData:
    """Joins a group's questions with their embeddings.

    Shapes: `embedded` has one array (options, D) for each question.
    Raises TooFewQuestions if there is no question. Raises ValueError if questions and arrays do not fit, or if a question occurs
    twice: an episode could then have it in its context and among its targets.
    """
    if not questions:
        raise TooFewQuestions(group=group, usable=0, needed=2, use="training")
    for question, rows in zip(questions, embedded, strict=True):
        if rows.shape != (len(question.options), embedded[0].shape[1]):
            raise ValueError(f"{question!r} has embeddings of shape {rows.shape}")
    if len({question.id for question in questions}) < len(questions):
        raise ValueError("a question is there twice")
    shares = np.concatenate([np.asarray(question.shares, dtype=np.float32) for question in questions])
    offsets = np.cumsum([0, *(len(question.options) for question in questions)])
    return GroupData(group, tuple(questions), np.concatenate(embedded, dtype=np.float32), shares, offsets)


def sharpen(data: GroupData, power: float) -> GroupData:
    """Returns the data of an imagined group that agrees more (power > 1) or less (power < 1) than the real one.

    Every share is raised to `power`; then the shares of each question are scaled to sum 1 again.
    """
    question = np.repeat(np.arange(len(data.questions)), np.diff(data.offsets))  # (P,)
    raised = data.shares.astype(np.float64) ** power  # (P,)
    totals = np.bincount(question, raised)  # (Q,)
    return replace(data, shares=(raised / totals[question]).astype(np.float32))


@dataclass(frozen=True, slots=True)
class Episode:
    """One training episode: the numbers of its context questions and of its target questions; no question is in both."""

    context: tuple[int, ...]
    targets: tuple[int, ...]


def check_enough(group: str, usable: int, episodes: Episodes) -> None:
    """Checks that a group has enough questions for the smallest episode. Raises TooFewQuestions if not.

    usable: the number of questions that the group could use.
    """
    needed = episodes.min_context + episodes.min_targets
    if usable < needed:
        use = f"an episode ({episodes.min_context} context + {episodes.min_targets} target questions)"
        raise TooFewQuestions(group=group, usable=usable, needed=needed, use=use)


def draw_episode(
    usable: Sequence[int], episodes: Episodes, sizes: np.random.Generator, rng: np.random.Generator
) -> Episode:
    """Draws one episode: first its two sizes, then that many different questions.

    The sizes are uniform in the spec's ranges; a range is cut to the number of questions there are.
    usable: numbers of the questions to draw from; `check_enough` has accepted how many they are.
    sizes: random stream for the sizes. Two numbers of it decide, for any range; clients with the same stream therefore have
    episodes of nearly the same size in the same step, and a batch of these episodes needs little padding.
    rng: random stream for the questions.
    """
    of_context, of_targets = sizes.random(2).tolist()
    most_context = min(episodes.max_context, len(usable) - episodes.min_targets)
    context = _within(episodes.min_context, most_context, of_context)
    most_targets = min(episodes.max_targets, len(usable) - context)
    targets = _within(episodes.min_targets, most_targets, of_targets)
    drawn = rng.permutation(np.asarray(usable))[: context + targets].tolist()
    return Episode(tuple(drawn[:context]), tuple(drawn[context:]))


def step_sizes(seed: int, step: int) -> np.random.Generator:
    """Returns the random stream for the sizes of a step's episodes.

    It depends only on the run's seed and the step, so it is the same for all clients.
    """
    return np.random.default_rng([seed, step])


def _within(least: int, most: int, fraction: float) -> int:
    """Returns the integer at a fraction (0 <= fraction < 1) of the range least .. most, both ends included."""
    return least + int(fraction * (most - least + 1))


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded episodes as tensors.

    Shapes: B episodes, D numbers in an embedding. C context points, T target points and Q target questions are the greatest
    numbers that one of the episodes has; shorter episodes are padded to them.
    """

    context: Tensor  # (B, C, D)
    context_shares: Tensor  # (B, C)
    context_is_real: Tensor  # (B, C) bool
    targets: Tensor  # (B, T, D)
    target_shares: Tensor  # (B, T)
    target_weights: Tensor  # (B, T): weight of the question that the point belongs to
    target_is_real: Tensor  # (B, T) bool
    target_question: Tensor  # (B, T) int64: number of the point's question in the episode, 0 .. Q - 1; Q for padding
    questions: int  # Q

    def to(self, device: torch.device) -> "Batch":
        """Returns this batch with its tensors on another device."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            moved[field.name] = value.to(device) if isinstance(value, Tensor) else value
        return Batch(**moved)


def make_batch(pairs: Sequence[tuple[GroupData, Episode]]) -> Batch:
    """Pads episodes of one or several groups to the longest one and joins them to one batch, on the CPU.

    pairs: for each episode, the data of its group and the episode.
    """
    contexts = [(data, data.points(episode.context)) for data, episode in pairs]
    targets = [(data, data.points(episode.targets)) for data, episode in pairs]
    sizes = [np.diff(data.offsets)[list(episode.targets)] for data, episode in pairs]  # options of each target question
    weights = [np.array([data.questions[q].weight for q in episode.targets], np.float32) for data, episode in pairs]
    questions = max(map(len, sizes))
    return Batch(
        context=_padded([data.embeddings[points] for data, points in contexts]),
        context_shares=_padded([data.shares[points] for data, points in contexts]),
        context_is_real=_padded([np.ones(len(points), bool) for _, points in contexts]),
        targets=_padded([data.embeddings[points] for data, points in targets]),
        target_shares=_padded([data.shares[points] for data, points in targets]),
        target_weights=_padded([np.repeat(weight, size) for weight, size in zip(weights, sizes, strict=True)]),
        target_is_real=_padded([np.ones(len(points), bool) for _, points in targets]),
        target_question=_padded([np.repeat(np.arange(len(size)), size) for size in sizes], fill=questions),
        questions=questions,
    )


def _padded(rows: Sequence[NDArray[np.generic]], fill: int = 0) -> Tensor:
    """Joins B arrays of shape (N, ...), each with its own N, to one tensor (B, greatest N, ...), padded with `fill`."""
    whole = np.full((len(rows), max(map(len, rows)), *rows[0].shape[1:]), fill, dtype=rows[0].dtype)
    for slot, row in zip(whole, rows, strict=True):
        slot[: len(row)] = row
    return torch.from_numpy(whole)


def sum_by_question(values: Tensor, question: Tensor, questions: int) -> Tensor:
    """Sums the values of each question's points.

    Shapes: values (B, T), question (B, T) int64 -> (B, Q), with Q = `questions`. Padding has question number Q and is left out.
    """
    return values.new_zeros((values.shape[0], questions + 1)).scatter_add(1, question, values)[:, :questions]


def log_softmax_by_question(scores: Tensor, question: Tensor, questions: int) -> Tensor:
    """Log-softmax of the scores among the options of each question.

    Shapes: scores (B, T), question (B, T) int64 -> (B, T). Padding has question number `questions`, so it does not influence
    the real questions; the results for padded points mean nothing.
    """
    batch, slots = scores.shape[0], questions + 1
    highest = scores.new_full((batch, slots), -torch.inf).scatter_reduce(1, question, scores.detach(), "amax")
    shifted = scores - highest.gather(1, question)  # (B, T)
    totals = scores.new_zeros((batch, slots)).scatter_add(1, question, shifted.exp())  # (B, Q + 1)
    return shifted - totals.gather(1, question).log()
