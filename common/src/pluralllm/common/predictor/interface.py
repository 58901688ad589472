"""The interface of the predictors: points in, predicted means out. Callers need not know which architecture a predictor has.

A point is one option of one question. All options of a question lie together.
Shapes: B episodes, N points (padded: C context points or T target points), D numbers in an embedding, d the model's width.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Points:
    """The options of some questions in each of B episodes, without answers. Shorter episodes are padded to N points."""

    embeddings: Tensor  # (B, N, D)
    positions: Tensor  # (B, N): 0 for a question's first option .. 1 for its last option
    question: (
        Tensor  # (B, N) int64: number of the point's question in the episode; one number more than all for padding
    )
    is_real: Tensor  # (B, N) bool, False for padding

    def to(self, device: torch.device) -> "Points":
        """Returns a copy of these points whose tensors are on another device."""
        moved = (tensor.to(device) for tensor in (self.embeddings, self.positions, self.question, self.is_real))
        return Points(*moved)


@dataclass(frozen=True, slots=True)
class Prediction:
    """The model's outputs for T target points in each of B episodes.

    Means can be compared only among the options of one question; the softmax of these means is the predicted shares.
    """

    mean: Tensor  # (B, T)
    log_std: Tensor  # (B, T): logarithm of the standard deviation of the share; see predicts_spread


class EncodedContext:
    """Base class for a group's encoded answers, as one architecture needs them to predict."""

    __slots__ = ()


class PreferencePredictor(nn.Module, ABC):
    """The model that predicts a group's share of each target option from the group's answers to other questions.

    A prediction has three steps. `encode_context` reads the group's answers, once for any number of targets. `embed` reads the
    targets, once for any number of groups. `predict_embedded` joins the two.
    """

    # Names of the parameters that a file of weights may leave out; they are 0 then.
    may_be_absent: ClassVar[frozenset[str]] = frozenset()
    # Whether log_std depends on the target. Otherwise it is one constant, and says nothing about a prediction.
    predicts_spread: ClassVar[bool] = False

    @abstractmethod
    def encode_context(self, context: Points, shares: Tensor) -> EncodedContext:
        """Encodes the context points. shares: the group's share of each point, (B, C).

        Each episode must have at least one real context point.
        """

    @abstractmethod
    def embed(self, targets: Points) -> Tensor:
        """Returns what the prediction needs of each target point, (B, T, d). It does not depend on the context."""

    @abstractmethod
    def predict_embedded(self, encoded: EncodedContext, embedded: Tensor) -> Prediction:
        """Predicts target points: embedded (B, T, d) -> mean and log_std (B, T). Target points do not influence one another.

        embedded: the result of `embed`, or a selection of its points. The results for padded points mean nothing.
        """

    def predict_targets(self, encoded: EncodedContext, targets: Points) -> Prediction:
        """Predicts target points. Target points do not influence one another. The results for padded points mean nothing."""
        return self.predict_embedded(encoded, self.embed(targets))

    def forward(self, context: Points, shares: Tensor, targets: Points) -> Prediction:
        """Predicts the T target points from the C context points and the group's shares of them, (B, C)."""
        return self.predict_targets(self.encode_context(context, shares), targets)
