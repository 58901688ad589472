"""A group's questions as arrays, the episodes drawn from them, and padded batches.

All options of a question go together. What is a real point and what is padding is told by masks, never by content.
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
    """Embedded questions of one group, each question once. P points, one for each (question, option); Q questions."""

    group: str
    questions: tuple[Question, ...]
    embeddings: NDArray[np.float32]  # (P, D)
    shares: NDArray[np.float32]  # (P,)
    offsets: NDArray[np.int64]  # (Q + 1,): the points of question q are offsets[q] .. offsets[q + 1]

    def __repr__(self) -> str:
        return f"GroupData({len(self.questions)} questions)"  # private: no group, no content

    def points(self, questions: Sequence[int]) -> NDArray[np.int64]:
        """Point numbers of these questions, in their order."""
        return np.concatenate([np.arange(self.offsets[q], self.offsets[q + 1]) for q in questions])

    def split(self, holdout_share: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Numbers of the questions to train on, and of those no group trains on (by hash, so alike in every group)."""
        held_out = [is_held_out(question.id, holdout_share) for question in self.questions]
        numbers = range(len(self.questions))
        return tuple(q for q in numbers if not held_out[q]), tuple(q for q in numbers if held_out[q])


def group_data(group: str, questions: Sequence[Question], embedded: Sequence[NDArray[np.float32]]) -> GroupData:
    """Joins questions and their embeddings, an (options, D) array for each.

    Raises TooFewQuestions for none; ValueError if they do not fit, or a question is there twice: the two could end up on both
    sides of an episode.
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
    """Another population: every question's shares to a power, brought to sum 1 again; above 1 it is more of one mind."""
    question = np.repeat(np.arange(len(data.questions)), np.diff(data.offsets))  # (P,)
    raised = data.shares.astype(np.float64) ** power  # (P,)
    totals = np.bincount(question, raised)  # (Q,)
    return replace(data, shares=(raised / totals[question]).astype(np.float32))


@dataclass(frozen=True, slots=True)
class Episode:
    """Numbers of a group's context and target questions; disjoint."""

    context: tuple[int, ...]
    targets: tuple[int, ...]


def check_enough(group: str, usable: int, episodes: Episodes) -> None:
    """Raises TooFewQuestions, with the numbers, if `usable` questions do not make the smallest episode."""
    needed = episodes.min_context + episodes.min_targets
    if usable < needed:
        use = f"an episode ({episodes.min_context} context + {episodes.min_targets} target questions)"
        raise TooFewQuestions(group=group, usable=usable, needed=needed, use=use)


def draw_episode(
    usable: Sequence[int], episodes: Episodes, sizes: np.random.Generator, rng: np.random.Generator
) -> Episode:
    """Sizes uniform in the spec's ranges, their upper ends cut to what there is; then questions without replacement.

    `usable`: question numbers, enough of them by `check_enough`. `sizes` gives two numbers in 0..1, whatever the ranges: clients
    that share it have episodes of nearly one size at the same step, and a batch of them little padding.
    """
    of_context, of_targets = sizes.random(2).tolist()
    most_context = min(episodes.max_context, len(usable) - episodes.min_targets)
    context = _within(episodes.min_context, most_context, of_context)
    most_targets = min(episodes.max_targets, len(usable) - context)
    targets = _within(episodes.min_targets, most_targets, of_targets)
    drawn = rng.permutation(np.asarray(usable))[: context + targets].tolist()
    return Episode(tuple(drawn[:context]), tuple(drawn[context:]))


def step_sizes(seed: int, step: int) -> np.random.Generator:
    """What the sizes of a step's episodes are drawn from: a matter of the run's seed and the step alone, so alike for all."""
    return np.random.default_rng([seed, step])


def _within(least: int, most: int, part: float) -> int:
    return least + int(part * (most - least + 1))


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded episodes. B episodes; C context points, T target points, Q target questions in the longest of them."""

    context: Tensor  # (B, C, D)
    context_shares: Tensor  # (B, C)
    context_is_real: Tensor  # (B, C) bool
    targets: Tensor  # (B, T, D)
    target_shares: Tensor  # (B, T)
    target_weights: Tensor  # (B, T), of the point's question
    target_is_real: Tensor  # (B, T) bool
    target_question: Tensor  # (B, T) int64: number of the point's question within the episode; padding has its own, Q
    questions: int  # Q

    def to(self, device: torch.device) -> "Batch":
        moved: dict[str, Any] = {}
        for field in fields(self):
            part = getattr(self, field.name)
            moved[field.name] = part.to(device) if isinstance(part, Tensor) else part
        return Batch(**moved)


def make_batch(pairs: Sequence[tuple[GroupData, Episode]]) -> Batch:
    """Episodes of one or several groups, padded to the longest, on the CPU."""
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
        target_weights=_padded([np.repeat(each, size) for each, size in zip(weights, sizes, strict=True)]),
        target_is_real=_padded([np.ones(len(points), bool) for _, points in targets]),
        target_question=_padded([np.repeat(np.arange(len(size)), size) for size in sizes], fill=questions),
        questions=questions,
    )


def _padded(rows: Sequence[NDArray[np.generic]], fill: int = 0) -> Tensor:
    """Rows of (N, ...) as one (B, longest N, ...)."""
    whole = np.full((len(rows), max(map(len, rows)), *rows[0].shape[1:]), fill, dtype=rows[0].dtype)
    for slot, row in zip(whole, rows, strict=True):
        slot[: len(row)] = row
    return torch.from_numpy(whole)


def sum_by_question(values: Tensor, question: Tensor, questions: int) -> Tensor:
    """(B, T) values summed within each question: (B, Q). Padding (question number `questions`) is left out."""
    return values.new_zeros((values.shape[0], questions + 1)).scatter_add(1, question, values)[:, :questions]


def log_softmax_by_question(scores: Tensor, question: Tensor, questions: int) -> Tensor:
    """Log-softmax of (B, T) scores within each question; padding (question number `questions`) is a question of its own."""
    batch, slots = scores.shape[0], questions + 1
    highest = scores.new_full((batch, slots), -torch.inf).scatter_reduce(1, question, scores.detach(), "amax")
    shifted = scores - highest.gather(1, question)  # (B, T)
    totals = scores.new_zeros((batch, slots)).scatter_add(1, question, shifted.exp())  # (B, Q + 1)
    return shifted - totals.gather(1, question).log()
