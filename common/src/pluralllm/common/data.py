"""A group's questions as arrays, and the episodes drawn from them.

All options of a question go together. Batches are padded, and real points are told from padding by masks, never by content.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pluralllm.common.errors import TooFewQuestions
from pluralllm.common.questions import Question, is_held_out
from pluralllm.common.spec import Episodes


@dataclass(frozen=True, slots=True, repr=False)
class GroupData:
    """Embedded questions of one group. Points of question q are offsets[q] .. offsets[q + 1]."""

    group: str
    questions: tuple[Question, ...]
    embeddings: NDArray[np.float32]  # [points, dimension]
    shares: NDArray[np.float32]  # [points]
    offsets: NDArray[np.int64]  # [questions + 1]

    def __repr__(self) -> str:
        return f"GroupData({len(self.questions)} questions)"  # private: no group, no content

    def points(self, questions: Sequence[int]) -> NDArray[np.int64]:
        """Point numbers of these questions, in order."""
        return np.concatenate([np.arange(self.offsets[q], self.offsets[q + 1]) for q in questions])

    def split(self, holdout_share: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Question numbers to train on, and those nobody trains on (by hash, alike in every group)."""
        held = tuple(q for q, question in enumerate(self.questions) if is_held_out(question.id, holdout_share))
        kept = set(held)
        return tuple(q for q in range(len(self.questions)) if q not in kept), held


def group_data(group: str, questions: Sequence[Question], embedded: Sequence[NDArray[np.float32]]) -> GroupData:
    """Joins questions and their embeddings, one [options, dimension] array each. Raises TooFewQuestions for none."""
    if not questions:
        raise TooFewQuestions(group=group, usable=0, needed=2, use="training")
    shares = np.concatenate([np.asarray(question.shares, dtype=np.float32) for question in questions])
    offsets = np.cumsum([0, *(len(question.options) for question in questions)])
    return GroupData(group, tuple(questions), np.concatenate(embedded), shares, offsets)


@dataclass(frozen=True, slots=True)
class Episode:
    """Context and target questions of one step; disjoint."""

    context: tuple[int, ...]
    targets: tuple[int, ...]


def check_enough(data: GroupData, usable: int, episodes: Episodes) -> None:
    """Raises TooFewQuestions, with the numbers."""
    needed = episodes.min_context + episodes.min_targets
    if usable < needed:
        use = f"an episode ({episodes.min_context} context + {episodes.min_targets} target questions)"
        raise TooFewQuestions(group=data.group, usable=usable, needed=needed, use=use)


def draw_episode(usable: Sequence[int], episodes: Episodes, rng: np.random.Generator) -> Episode:
    """Sizes uniform in the spec's ranges, their upper ends cut to what there is; questions without replacement."""
    count = len(usable)
    context = int(rng.integers(episodes.min_context, min(episodes.max_context, count - episodes.min_targets) + 1))
    targets = int(rng.integers(episodes.min_targets, min(episodes.max_targets, count - context) + 1))
    drawn = rng.permutation(np.asarray(usable))[: context + targets].tolist()
    return Episode(tuple(drawn[:context]), tuple(drawn[context:]))


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded episodes. B episodes, C context points, T target points, Q target questions in one episode."""

    context: Tensor  # (B, C, D)
    context_shares: Tensor  # (B, C)
    context_is_real: Tensor  # (B, C) bool
    targets: Tensor  # (B, T, D)
    target_shares: Tensor  # (B, T)
    target_is_real: Tensor  # (B, T) bool
    target_question: Tensor  # (B, T) int64: number of the point's question within the episode; padding has its own, Q
    questions: int  # Q, the largest of the batch

    def to(self, device: torch.device) -> "Batch":
        moved = {
            name: getattr(self, name).to(device)
            for name in (
                "context",
                "context_shares",
                "context_is_real",
                "targets",
                "target_shares",
                "target_is_real",
                "target_question",
            )
        }
        return Batch(**moved, questions=self.questions)


def make_batch(pairs: Sequence[tuple[GroupData, Episode]]) -> Batch:
    """Episodes of one or several groups, padded to the longest."""
    contexts = [data.points(episode.context) for data, episode in pairs]
    targets = [data.points(episode.targets) for data, episode in pairs]
    width, length = max(map(len, contexts)), max(map(len, targets))
    size, dimension = len(pairs), pairs[0][0].embeddings.shape[1]
    questions = max(len(episode.targets) for _, episode in pairs)
    context = np.zeros((size, width, dimension), dtype=np.float32)
    target = np.zeros((size, length, dimension), dtype=np.float32)
    context_shares, target_shares = np.zeros((size, width), np.float32), np.zeros((size, length), np.float32)
    context_is_real, target_is_real = np.zeros((size, width), bool), np.zeros((size, length), bool)
    target_question = np.full((size, length), questions, dtype=np.int64)
    for row, ((data, episode), c, t) in enumerate(zip(pairs, contexts, targets, strict=True)):
        context[row, : len(c)], context_shares[row, : len(c)] = data.embeddings[c], data.shares[c]
        target[row, : len(t)], target_shares[row, : len(t)] = data.embeddings[t], data.shares[t]
        context_is_real[row, : len(c)] = target_is_real[row, : len(t)] = True
        sizes = [int(data.offsets[q + 1] - data.offsets[q]) for q in episode.targets]
        target_question[row, : len(t)] = np.repeat(np.arange(len(sizes)), sizes)
    return Batch(
        context=torch.from_numpy(context),
        context_shares=torch.from_numpy(context_shares),
        context_is_real=torch.from_numpy(context_is_real),
        targets=torch.from_numpy(target),
        target_shares=torch.from_numpy(target_shares),
        target_is_real=torch.from_numpy(target_is_real),
        target_question=torch.from_numpy(target_question),
        questions=questions,
    )


def log_softmax_by_question(scores: Tensor, question: Tensor, questions: int) -> Tensor:
    """Log-softmax of (B, T) scores within each question; padding (question number `questions`) is a question of its own."""
    batch = scores.shape[0]
    groups = questions + 1
    highest = scores.new_full((batch, groups), -torch.inf).scatter_reduce(1, question, scores.detach(), "amax")
    shifted = scores - highest.gather(1, question)  # (B, T)
    totals = scores.new_zeros((batch, groups)).scatter_add(1, question, shifted.exp())  # (B, Q + 1)
    return shifted - totals.gather(1, question).log()
