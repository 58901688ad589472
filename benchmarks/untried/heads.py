"""Two changes of the predictor fourier-kernel/1: attention in place of its regression, and options that see one another.

Both predictors are for one episode at a time, without padding. Shapes: C context points, T target points, N points of either
kind, D numbers in an embedding (two vectors of D/2), d features, k numbers in a key, r numbers in an option's message.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from pluralllm.common.predictor.architecture import initial_values, parameters
from pluralllm.common.predictor.fourier_kernel import (
    PRIOR_SCALE,
    SHARE_FLOOR,
    SPREAD,
    FourierEmbedder,
    FourierKernelPredictor,
    centring,
)
from pluralllm.common.predictor.interface import EncodedContext, Points, Prediction, PreferencePredictor
from pluralllm.common.predictor.model import load_weights
from pluralllm.common.words.predictors import FourierKernel
from pluralllm.common.words.spec import RunSpec

FASTER = 10.0  # temperatures are exp(FASTER * parameter), so that they move as far as the task wants within 180 steps
FEATURE_TEMPERATURE = 8.0  # first values: the factor on a cosine
QUESTION_TEMPERATURE, OPTION_TEMPERATURE, POSITION_TEMPERATURE = 10.0, 5.0, 3.0
Keys = Literal["features", "vectors"]


def kernel_predictor(spec: RunSpec) -> FourierKernelPredictor:
    """Returns the predictor of the preset `fourier` with the initial values of the run's seed."""
    assert isinstance(spec.predictor, FourierKernel)
    model = FourierKernelPredictor(spec.predictor, spec.embedding)
    first = {p.name: initial_values(p, spec.seed) for p in parameters(spec.predictor, spec.embedding.dimension)}
    load_weights(model, first)
    return model


@dataclass(frozen=True, slots=True)
class AttendedContext(EncodedContext):
    """The encoded context: a key and a value for each context point."""

    keys: Tensor  # (1, C, k)
    values: Tensor  # (1, C): centred logarithm of the share minus the prior


class AttentionPredictor(PreferencePredictor):
    """Softmax attention on the context's answers, with cosines as its logits (the estimator of Nadaraya and Watson).

    logit(x) = m(x) + gain * sum over context points c of softmax_c(key(x).key(c)) r(c), for the prior m and the residuals r of
    fourier-kernel/1. Keys are the centred Fourier features or the unit vectors of question and option with a unit vector for
    the option's position; learnt temperatures set their lengths.
    """

    def __init__(self, spec: RunSpec, keys: Keys) -> None:
        super().__init__()
        kernel = kernel_predictor(spec)
        self.embedder: FourierEmbedder = kernel.embedder
        self.prior = kernel.head.prior  # (d,)
        first = [FEATURE_TEMPERATURE]
        if keys == "vectors":
            first = [QUESTION_TEMPERATURE, OPTION_TEMPERATURE, POSITION_TEMPERATURE]
        self.log_temperatures = nn.Parameter(torch.tensor(first).log() / FASTER)
        self.log_gain = nn.Parameter(torch.zeros(1))
        self._keys = keys

    def encode_context(self, context: Points, shares: Tensor) -> AttendedContext:
        """Returns keys and values of the context points. shares: the group's share of each point, (1, C)."""
        h = self.embedder(context)  # (1, C, d)
        logs = torch.log(shares.clamp_min(0) + SHARE_FLOOR) - self._prior_of(h)
        residual = (centring(context, h.dtype) @ logs.unsqueeze(-1)).squeeze(-1)  # (1, C)
        return AttendedContext(self._keys_of(context, h), residual)

    def embed(self, targets: Points) -> Tensor:
        """Returns the prior and the key of each target point, (1, T, 1 + k)."""
        h = self.embedder(targets)  # (1, T, d)
        return torch.cat([self._prior_of(h).unsqueeze(-1), self._keys_of(targets, h)], dim=-1)

    def predict_embedded(self, encoded: EncodedContext, embedded: Tensor) -> Prediction:
        """Predicts target points from their keys: embedded (1, T, 1 + k) -> mean and log_std (1, T)."""
        assert isinstance(encoded, AttendedContext)
        attention = torch.softmax(embedded[..., 1:] @ encoded.keys.mT, dim=-1)  # (1, T, C)
        answer = (attention @ encoded.values.unsqueeze(-1)).squeeze(-1)  # (1, T)
        mean = embedded[..., 0] + (FASTER * self.log_gain).exp() * answer
        return Prediction(mean, torch.full_like(mean, math.log(SPREAD)))

    def _prior_of(self, h: Tensor) -> Tensor:
        logits: Tensor = h @ (PRIOR_SCALE * math.sqrt(h.shape[-1]) * self.prior)  # (1, N)
        return logits

    def _keys_of(self, points: Points, h: Tensor) -> Tensor:
        lengths = (FASTER * self.log_temperatures / 2).exp()  # a logit is the product of two keys
        if self._keys == "features":
            centred = centred_by_question(points, h)
            return lengths * nn.functional.normalize(centred, dim=-1)  # (1, N, d)
        question, option = points.embeddings.chunk(2, dim=-1)  # (1, N, D/2) each
        angle = math.pi * points.positions
        position = torch.stack([angle.cos(), angle.sin()], dim=-1)  # (1, N, 2)
        return torch.cat([lengths[0] * question, lengths[1] * option, lengths[2] * position], dim=-1)  # (1, N, D + 2)


def centred_by_question(points: Points, values: Tensor) -> Tensor:
    """Returns the values of each point minus their mean over the point's question. values: (1, N, n)."""
    number = points.question[0]  # (N,)
    sums = values.new_zeros((int(number.max()) + 1, values.shape[-1])).index_add(0, number, values[0])
    counts = torch.bincount(number).clamp_min(1).unsqueeze(-1)  # (questions, 1)
    return values - (sums / counts)[number]


class CrossOptionPredictor(PreferencePredictor):
    """Predictor fourier-kernel/1, in which each option's vector first receives a message from the question's other options.

    The message is attention over the question's options, or their plain mean. Its last layer starts at 0, so training starts
    from fourier-kernel/1 itself.
    """

    def __init__(self, spec: RunSpec, rank: int, *, attends: bool) -> None:
        super().__init__()
        self.kernel = kernel_predictor(spec)
        width = spec.embedding.dimension // 2
        draws = torch.Generator().manual_seed(spec.seed)
        names = ("query", "key", "value") if attends else ("value",)
        self.read = nn.ParameterDict(
            {name: nn.Parameter(torch.randn((rank, width), generator=draws) / math.sqrt(width)) for name in names}
        )
        self.write = nn.Parameter(torch.zeros((width, rank)))

    def encode_context(self, context: Points, shares: Tensor) -> EncodedContext:
        """Solves the regression on the context points. shares: the group's share of each point, (1, C)."""
        return self.kernel.encode_context(self.with_messages(context), shares)

    def embed(self, targets: Points) -> Tensor:
        """Returns the features of the target points, (1, T, d)."""
        return self.kernel.embed(self.with_messages(targets))

    def predict_embedded(self, encoded: EncodedContext, embedded: Tensor) -> Prediction:
        """Predicts target points from their features: embedded (1, T, d) -> mean and log_std (1, T)."""
        return self.kernel.predict_embedded(encoded, embedded)

    def with_messages(self, points: Points) -> Points:
        """Returns the points with the messages added to their options' vectors."""
        question, option = points.embeddings.chunk(2, dim=-1)  # (1, N, D/2) each
        width = option.shape[-1]
        scaled = math.sqrt(width) * option[0]  # (N, D/2), components of variance 1
        other = points.question[0][:, None] == points.question[0][None, :]  # (N, N)
        other = other & ~torch.eye(len(other), dtype=torch.bool, device=other.device)
        logits = scaled.new_zeros(other.shape)
        if "query" in self.read:
            logits = (
                (scaled @ self.read["query"].T) @ (scaled @ self.read["key"].T).T / math.sqrt(len(self.read["key"]))
            )
        weights = (
            torch.softmax(logits.masked_fill(~other, -1e9), dim=-1) * other
        )  # (N, N), 0 for a question's only option
        messages = weights @ (scaled @ self.read["value"].T)  # (N, r)
        added = option + (messages @ self.write.T / math.sqrt(width)).unsqueeze(0)
        return replace(points, embeddings=torch.cat([question, added], dim=-1))
