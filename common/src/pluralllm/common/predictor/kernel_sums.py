"""The predictor kernel-sums/1: Gaussian process regression on the context's answers, with Fourier features that never change.

The prior is the solution of a linear problem: w minimises the sum over the training groups of |y - F w|^2, plus RIDGE |w|^2. F
has the group's features, one row for each option, centred over the options of each question; y has the centred logarithms of
share + 0.01. The group part U of the kernel is the best likeness of few dimensions of the vectors in which groups differ from
the prior. Features are drawn from a seed (architecture.py), so they are never sent.

    prior:        m(x) = w.h(x)
    kernel:       k(x, x') = 0.9 h.h' + 1.44 (U h).(U h')
    regression:   as in fourier_kernel.py, with the noise 0.7; the logits are then multiplied by 1.08

Shapes: B episodes, N points, C context points, T target points, d features, R = group_rank.
Source: as fourier_kernel.py.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from pluralllm.common.predictor.architecture import (
    GROUP_PROJECTION,
    PRIOR,
    initial_values,
    option_signs,
    parameters,
    random_features,
)
from pluralllm.common.predictor.fourier_kernel import Kernel, KernelContext, context_weights
from pluralllm.common.predictor.interface import EncodedContext, Points, Prediction, PreferencePredictor
from pluralllm.common.words.embedding import Embedding
from pluralllm.common.words.predictors import KernelSums

KERNEL = Kernel(scale=0.9, noise=0.7, group_scale=1.44)
FINAL_FACTOR = 1.08  # of the logits
LOG_SPREAD = -1.897  # logarithm of 0.15, the standard deviation of a predicted share, which this model does not predict


class KernelSumsPredictor(PreferencePredictor):
    """Gaussian process regression on fixed Fourier features. A version of a run's first stage has no group projection."""

    may_be_absent: ClassVar[frozenset[str]] = frozenset({GROUP_PROJECTION})

    def __init__(self, config: KernelSums, embedding: Embedding) -> None:
        """Creates the parameters with the initial values of a run with seed 0."""
        super().__init__()
        first = {p.name: torch.from_numpy(initial_values(p, 0)) for p in parameters(config, embedding.dimension)}
        self._config = config
        self._features = _drawn(config, embedding.dimension // 2)
        self.head = SumsHead(first[PRIOR], first[GROUP_PROJECTION])

    def encode_context(self, context: Points, shares: Tensor) -> KernelContext:
        """Solves the regression on the context points. shares: the group's share of each point, (B, C)."""
        h = self.embed(context)  # (B, C, d)
        return KernelContext(self.head(h, shares, context))

    def embed(self, targets: Points) -> Tensor:
        """Returns the features of the points, (B, N, d)."""
        drawn = self._features.on(targets.embeddings.device)
        question, option = targets.embeddings.chunk(2, dim=-1)  # (B, N, D/2) each
        angle = _of_questions(question, targets.question, drawn)  # (B, N, d)
        angle[..., drawn.option_reading] += F.linear(option, drawn.option_weight)
        h = angle.addcmul_(targets.positions.unsqueeze(-1), drawn.position_weight).cos_().mul_(drawn.factor)
        h[..., drawn.flips] *= self._signs(targets, drawn.flips)
        return h

    def predict_embedded(self, encoded: EncodedContext, embedded: Tensor) -> Prediction:
        """Predicts target points from their features: embedded (B, T, d) -> mean and log_std (B, T)."""
        assert isinstance(encoded, KernelContext)
        mean = torch.einsum("btd,bd->bt", embedded, encoded.weights)  # (B, T)
        return Prediction(mean, torch.full_like(mean, LOG_SPREAD))

    def _signs(self, points: Points, flips: Tensor) -> Tensor:
        """Returns the signs of some features, which depend on the number of options of each point's question: (B, N, flips)."""
        number = points.question  # (B, N)
        counts = number.new_zeros(number.shape[0], int(number.max()) + 1)
        counts = counts.scatter_add(1, number, torch.ones_like(number)).gather(1, number)  # (B, N)
        sizes, place = torch.unique(counts, return_inverse=True)
        table = torch.stack([_signs_of(self._config, size) for size in sizes.tolist()])  # (sizes, d)
        return table.to(number.device)[:, flips][place]


class SumsHead(nn.Module):
    """Regression on the context's answers. Its result is one vector for each context."""

    def __init__(self, prior: Tensor, group_projection: Tensor) -> None:
        super().__init__()
        self.prior = nn.Parameter(prior)  # (d,): w
        self.group_projection = nn.Parameter(group_projection)  # (R, d): U

    def forward(self, h: Tensor, shares: Tensor, context: Points) -> Tensor:
        """Returns the weights v of the logits as a function of the features: h (B, C, d), shares (B, C) -> (B, d)."""
        return FINAL_FACTOR * context_weights(h, shares, context, self.prior, self.group_projection, KERNEL)


@dataclass(frozen=True, slots=True, eq=False)
class DrawnFeatures:
    """The features as tensors. Only some features read the option's text; the others have no row in `option_weight`."""

    question_weight: Tensor  # (d, D/2)
    option_weight: Tensor  # (features that read the option, D/2)
    option_reading: Tensor  # (features that read the option,): their numbers
    position_weight: Tensor  # (d,)
    phase: Tensor  # (d,)
    factor: Tensor  # (d,)
    flips: Tensor  # (flipping features,): numbers of the features whose sign depends on the number of options

    def on(self, device: torch.device) -> "DrawnFeatures":
        """Returns the features on a device."""
        if self.phase.device == device:
            return self
        names = ("question_weight", "option_weight", "option_reading", "position_weight", "phase", "factor", "flips")
        return DrawnFeatures(*(getattr(self, name).to(device) for name in names))


def _of_questions(question: Tensor, number: Tensor, drawn: DrawnFeatures) -> Tensor:
    """Returns the part of the angles that depends on the question, plus the phases: (B, N, D/2) -> (B, N, d).

    All options of a question have its vector and lie together, so the product is computed once for each question.
    number: (B, N), number of each point's question in its episode.
    """
    is_first = torch.ones_like(number, dtype=torch.bool)
    is_first[:, 1:] = number[:, 1:] != number[:, :-1]
    once = F.linear(question[is_first], drawn.question_weight, drawn.phase)  # (questions, d)
    return once[is_first.flatten().cumsum(0).view_as(number) - 1]


@lru_cache(maxsize=2)
def _drawn(config: KernelSums, width: int) -> DrawnFeatures:
    """Draws the features once for all models with the same settings, because that takes a moment."""
    drawn = random_features(config, width)
    reading = np.flatnonzero(drawn.option_weight.any(axis=1))
    arrays = (drawn.question_weight, drawn.option_weight[reading], reading, drawn.position_weight, drawn.phase)
    return DrawnFeatures(*map(torch.from_numpy, (*arrays, drawn.factor, np.flatnonzero(drawn.flips))))


@lru_cache(maxsize=64)
def _signs_of(config: KernelSums, options: int) -> Tensor:
    return torch.from_numpy(option_signs(config, options))
