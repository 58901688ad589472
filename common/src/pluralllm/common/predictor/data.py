"""Holds a group's questions as arrays, draws training episodes from the questions, and pads episodes to batches.

A point is one option of one question. All options of a question always stay together. Masks mark which points are real and which
are padding; code must never guess from a point's content whether the point is padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pluralllm.common.errors.tree import TooFewQuestions
from pluralllm.common.predictor.interface import Points
from pluralllm.common.words.questions import HoldOut, Question
from pluralllm.common.words.spec import Episodes


@dataclass(frozen=True, slots=True, repr=False)
class GroupData:
    """The questions of one group with their embeddings; each question occurs once.

    Shapes: Q questions, P points (one for each option of each question), D numbers in an embedding.
    """

    group: str
    questions: tuple[Question, ...]
    embeddings: NDArray[np.float32]  # (P, D)
    shares: NDArray[np.float32]  # (P,)
    offsets: NDArray[np.int64]  # (Q + 1,): the points of question q are offsets[q] .. offsets[q + 1] - 1
    positions: NDArray[np.float32]  # (P,): of the options of each question, as `Question.positions` has them

    def __repr__(self) -> str:
        return f"GroupData({len(self.questions)} questions)"  # private: shows neither the group nor any content

    def points(self, questions: Sequence[int]) -> NDArray[np.int64]:
        """Returns the indices of the points that belong to some questions, in the order of the questions.

        questions: indices of the questions. Shape of the result: (n,), where n is the number of all options of these questions.
        """
        return np.concatenate([np.arange(self.offsets[q], self.offsets[q + 1]) for q in questions])

    def split(self, held_out: HoldOut) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns two tuples of question indices: the questions for training, and the questions that are held out from training.

        held_out: the run spec's rule, by which every group holds out the same questions.
        """
        withheld = [held_out.includes(question) for question in self.questions]
        numbers = range(len(self.questions))
        return tuple(q for q in numbers if not withheld[q]), tuple(q for q in numbers if withheld[q])


def group_data(group: str, questions: Sequence[Question], embedded: Sequence[NDArray[np.float32]]) -> GroupData:
    """Joins a group's questions with their embeddings.

    embedded: for each question, one array with an embedding for each option. Shape of each array: (options, D) with D numbers
    in an embedding. Raises TooFewQuestions if there is no question. Raises ValueError if an array has another shape, or if a
    question occurs twice. A question that occurs twice could be in an episode's context and also among the episode's target
    questions.
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
    positions = np.concatenate([np.asarray(question.positions, dtype=np.float32) for question in questions])
    return GroupData(group, tuple(questions), _joined(embedded), shares, offsets, positions)


def _joined(embedded: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Returns the rows of all arrays as one array, without a copy if the arrays already lie one after the other in memory.

    The embedder's arrays do. For 10^5 questions, a copy would take about a gigabyte.
    """
    whole = embedded[0].base
    size = sum(rows.size for rows in embedded)
    if isinstance(whole, np.ndarray) and whole.dtype == np.float32 and whole.size == size and whole.flags.c_contiguous:
        addresses = np.cumsum([whole.ctypes.data, *(rows.nbytes for rows in embedded[:-1])])
        if all(rows.ctypes.data == address for rows, address in zip(embedded, addresses, strict=True)):
            return whole.reshape(-1, embedded[0].shape[1])
    return np.concatenate(embedded, dtype=np.float32)


def sharpen(data: GroupData, power: float) -> GroupData:
    """Returns a copy of the data as if the group's members agreed more (for a power above 1) or less (below 1).

    Each option's share of the answers is raised to the power `power`. Then the shares of each question are scaled to sum 1.
    """
    question = np.repeat(np.arange(len(data.questions)), np.diff(data.offsets))  # (P,)
    raised = data.shares.astype(np.float64) ** power  # (P,)
    totals = np.bincount(question, raised)  # (Q,)
    return replace(data, shares=(raised / totals[question]).astype(np.float32))


@dataclass(frozen=True, slots=True)
class Episode:
    """One training episode: the indices of its context questions and of its target questions. No question has both roles."""

    context: tuple[int, ...]
    targets: tuple[int, ...]


def check_enough(group: str, usable: int, episodes: Episodes) -> None:
    """Checks that a group has enough questions for the smallest episode. Raises TooFewQuestions otherwise.

    usable: the number of questions that the group could use. episodes: the bounds of the episode sizes, from the run spec.
    """
    needed = episodes.min_context + episodes.min_targets
    if usable < needed:
        use = f"an episode ({episodes.min_context} context + {episodes.min_targets} target questions)"
        raise TooFewQuestions(group=group, usable=usable, needed=needed, use=use)


def draw_episode(
    usable: Sequence[int], episodes: Episodes, sizes: np.random.Generator, rng: np.random.Generator
) -> Episode:
    """Draws one episode: first the number of context and of target questions, and then the questions, each at most once.

    episodes: the least and greatest numbers of context and target questions. Each number is drawn uniformly between its
    bounds. The greatest numbers are lowered if there are too few usable questions.
    usable: indices of the questions to draw from. The caller has checked with `check_enough` that there are enough questions.
    sizes: random stream for the two numbers. Every draw takes exactly two values from this stream. Clients with the same
    stream therefore draw episodes of nearly the same size in the same step. A batch of such episodes needs little padding.
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
    """Returns the random stream that decides how many questions the episodes of a training step have.

    The stream depends only on the run's seed and the number of the step, so all clients have the same stream.
    """
    return np.random.default_rng([seed, step])


def _within(least: int, most: int, fraction: float) -> int:
    """Returns an integer between two bounds: the lower bound for fraction 0, the upper bound for a fraction just below 1."""
    return least + int(fraction * (most - least + 1))


@dataclass(frozen=True, slots=True)
class Batch:
    """Episodes that are padded to the same size and joined to tensors.

    Shapes: B episodes, D numbers in an embedding. C, T and Q are the greatest numbers of context points, target points
    and target questions in one episode. Shorter episodes are padded to these sizes.
    """

    context: Points  # (B, C)
    context_shares: Tensor  # (B, C)
    targets: Points  # (B, T)
    target_shares: Tensor  # (B, T)
    target_weights: Tensor  # (B, T): weight of the question that the point belongs to
    questions: int  # Q

    def to(self, device: torch.device) -> "Batch":
        """Returns a copy of this batch whose tensors are on another device."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            moved[field.name] = value.to(device) if isinstance(value, Tensor | Points) else value
        return Batch(**moved)


def make_batch(pairs: Sequence[tuple[GroupData, Episode]]) -> Batch:
    """Pads episodes of one or several groups to the size of the largest episode, and joins the episodes to one batch on the CPU.

    pairs: for each episode, the data of its group and the episode.
    """
    context_points = [(data, data.points(episode.context)) for data, episode in pairs]
    target_points = [(data, data.points(episode.targets)) for data, episode in pairs]
    sizes = [np.diff(data.offsets)[list(episode.targets)] for data, episode in pairs]  # options of each target question
    weights = [np.array([data.questions[q].weight for q in episode.targets], np.float32) for data, episode in pairs]
    return Batch(
        context=make_points([(data, episode.context) for data, episode in pairs]),
        context_shares=_padded([data.shares[points] for data, points in context_points]),
        targets=make_points([(data, episode.targets) for data, episode in pairs]),
        target_shares=_padded([data.shares[points] for data, points in target_points]),
        target_weights=_padded([np.repeat(weight, size) for weight, size in zip(weights, sizes, strict=True)]),
        questions=max(map(len, sizes)),
    )


def make_points(pairs: Sequence[tuple[GroupData, Sequence[int]]]) -> Points:
    """Pads the points of one or several groups' questions to the same number, and joins them to tensors on the CPU.

    pairs: for each episode, the data of its group and the indices of the questions.
    """
    rows = [(data, data.points(questions)) for data, questions in pairs]
    sizes = [np.diff(data.offsets)[list(questions)] for data, questions in pairs]  # options of each question
    return Points(
        embeddings=_padded([data.embeddings[points] for data, points in rows]),
        positions=_padded([data.positions[points] for data, points in rows]),
        question=_padded([np.repeat(np.arange(len(size)), size) for size in sizes], fill=max(map(len, sizes))),
        is_real=_padded([np.ones(len(points), bool) for _, points in rows]),
    )


def _padded(rows: Sequence[NDArray[np.generic]], fill: int = 0) -> Tensor:
    """Joins B arrays to one tensor. The arrays may differ in their first dimension N; shorter arrays are padded.

    Shapes: B arrays (N, ...) -> (B, greatest N, ...). fill: the value of the padding.
    """
    whole = np.full((len(rows), max(map(len, rows)), *rows[0].shape[1:]), fill, dtype=rows[0].dtype)
    for slot, row in zip(whole, rows, strict=True):
        slot[: len(row)] = row
    return torch.from_numpy(whole)


def sum_by_question(values: Tensor, question: Tensor, questions: int) -> Tensor:
    """Sums the values of each question's points.

    Shapes: B episodes, T target points, Q questions; values (B, T), question (B, T) int64 -> (B, Q).
    question: for each point, the index of its question, 0 .. Q - 1. Padded points have index Q and are left out of the sums.
    """
    return values.new_zeros((values.shape[0], questions + 1)).scatter_add(1, question, values)[:, :questions]


def log_softmax_by_question(scores: Tensor, question: Tensor, questions: int) -> Tensor:
    """Returns the log-softmax of the scores, computed among the options of each question.

    Shapes: B episodes, T target points; scores (B, T), question (B, T) int64 -> (B, T).
    question: for each point, the index of its question. questions: the number of questions. Padded points have this number as
    their index, so these points do not influence the real questions. The results for padded points mean nothing.
    """
    batch, slots = scores.shape[0], questions + 1
    highest = scores.new_full((batch, slots), -torch.inf).scatter_reduce(1, question, scores.detach(), "amax")
    shifted = scores - highest.gather(1, question)  # (B, T)
    totals = scores.new_zeros((batch, slots)).scatter_add(1, question, shifted.exp())  # (B, Q + 1)
    return shifted - totals.gather(1, question).log()
