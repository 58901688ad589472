"""The predictor tnp-d/1: a transformer neural process (TNP-D) that computes attention to context points only.

A point is [embedding ; y]: for a context point, y is the group's share; for a target point, y is 0. Every point attends only
to the context points, with the same weights for context and target points. So targets do not influence one another. One pass
predicts all T targets from C context points at a cost of C^2 + C*T instead of (C + T)^2. The context's keys and values can be
kept for later targets. The order of the context does not matter, and a point's position among the options of its question is
not read. Layers are post-norm with ReLU.

Shapes: B episodes, C context points, T target points, N points of either kind, D numbers in an embedding, d = d_model, H
heads. Names, shapes and initial values of the parameters are in architecture.py.
Sources: arXiv 2503.09925 (PluralLLM), arXiv 2310.11523 (GPO), arXiv 2207.04179 (TNP-D).
"""

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from pluralllm.common.predictor.architecture import OUTPUTS
from pluralllm.common.predictor.interface import EncodedContext, Points, Prediction, PreferencePredictor
from pluralllm.common.words.embedding import Embedding
from pluralllm.common.words.predictors import NeuralProcess


@dataclass(frozen=True, slots=True)
class AttentionContext(EncodedContext):
    """The encoded context points: the keys, values and mask that every layer needs to predict targets.

    Shapes: B episodes, H heads, C context points, d = d_model.
    """

    keys: tuple[Tensor, ...]  # one for each layer, (B, H, C, d/H)
    values: tuple[Tensor, ...]  # one for each layer, (B, H, C, d/H)
    mask: Tensor  # (B, 1, 1, C) bool, True for a real point


class NeuralProcessPredictor(PreferencePredictor):
    """The neural network that predicts a group's share of each target option from the group's answers to other questions."""

    predicts_spread: ClassVar[bool] = True

    def __init__(self, config: NeuralProcess, embedding: Embedding) -> None:
        """Creates the layers with random initial values from torch."""
        super().__init__()
        widths = [embedding.dimension + 1, *[config.d_model] * config.embedder_layers]  # +1: the share y of the point
        self.input_scale = input_scale(config, embedding)
        self.share_scale = config.share_scale
        self.embedder = nn.ModuleList(nn.Linear(fan_in, fan_out) for fan_in, fan_out in itertools.pairwise(widths))
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.head = nn.ModuleList([nn.Linear(config.d_model, config.d_model), nn.Linear(config.d_model, OUTPUTS)])

    def encode_context(self, context: Points, shares: Tensor) -> AttentionContext:
        """Encodes the context points. The result can be used in any number of calls of `predict_targets`.

        Shapes: B episodes, C context points; shares (B, C). Each episode must have at least one real context point.
        """
        attended = context.is_real[:, None, None, :]  # (B, 1, 1, C)
        x = self._embed(context.embeddings, shares)  # (B, C, d)
        keys, values = [], []
        for number, layer in enumerate(self.layers, 1):
            assert isinstance(layer, EncoderLayer)
            k, v = layer.keys_and_values(x)
            keys.append(k)
            values.append(v)
            if number < len(self.layers):  # nothing reads the context after the last layer's keys and values
                x = layer(x, k, v, attended)  # (B, C, d)
        return AttentionContext(tuple(keys), tuple(values), attended)

    def embed(self, targets: Points) -> Tensor:
        """Returns the target points as the first layer reads them: (B, T, d), with the share 0."""
        return self._embed(targets.embeddings, targets.embeddings.new_zeros(targets.embeddings.shape[:2]))

    def predict_embedded(self, encoded: EncodedContext, embedded: Tensor) -> Prediction:
        """Predicts target points: embedded (B, T, d) -> mean and log_std (B, T). The results for padded points mean nothing."""
        assert isinstance(encoded, AttentionContext)
        x = embedded
        for layer, k, v in zip(self.layers, encoded.keys, encoded.values, strict=True):
            x = layer(x, k, v, encoded.mask)  # (B, T, d)
        hidden, out = self.head
        mean, log_std = out(F.relu(hidden(x))).unbind(-1)  # (B, T, 2) -> (B, T), (B, T)
        return Prediction(mean, log_std)

    def _embed(self, embeddings: Tensor, shares: Tensor) -> Tensor:
        """Joins each scaled embedding with its share to one point, and applies the model's input layers.

        Shapes: B episodes, N points, D numbers in an embedding, d = d_model; embeddings (B, N, D), shares (B, N) ->
        (B, N, d).
        """
        y = shares.unsqueeze(-1) * self.share_scale  # (B, N, 1)
        x = torch.cat([embeddings * self.input_scale, y], dim=-1)  # (B, N, D + 1)
        *hidden, out = self.embedder
        for linear in hidden:
            x = F.relu(linear(x))  # (B, N, d)
        embedded: Tensor = out(x)
        return embedded


class EncoderLayer(nn.Module):
    """One post-norm transformer layer. Its input points attend to the context points, which may be other points."""

    def __init__(self, config: NeuralProcess) -> None:
        super().__init__()
        d = config.d_model
        self.heads = config.heads
        self.dropout = config.dropout
        self.attention_in = nn.Linear(d, 3 * d)  # rows: queries, keys, values
        self.attention_out = nn.Linear(d, d)
        self.attention_norm = nn.LayerNorm(d)
        self.feedforward_in = nn.Linear(d, config.feedforward)
        self.feedforward_out = nn.Linear(config.feedforward, d)
        self.feedforward_norm = nn.LayerNorm(d)

    def keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the attention keys and values of context points.

        Shapes: B episodes, C context points, d = d_model, H heads; context (B, C, d) -> keys and values, each (B, H, C, d/H).
        """
        d = context.shape[-1]
        both = F.linear(context, self.attention_in.weight[d:], self.attention_in.bias[d:])  # (B, C, 2d)
        keys, values = both.chunk(2, dim=-1)
        return self._by_head(keys), self._by_head(values)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Applies the layer to points; every point attends to the real context points.

        Shapes: B episodes, N points, C context points, d = d_model, H heads; x (B, N, d), keys and values (B, H, C, d/H), mask
        (B, 1, 1, C) bool with True for a real context point -> (B, N, d).
        """
        d, dropout = x.shape[-1], self.dropout if self.training else 0.0
        queries = self._by_head(F.linear(x, self.attention_in.weight[:d], self.attention_in.bias[:d]))  # (B, H, N, d/H)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)
        attended = self.attention_out(mixed.transpose(1, 2).flatten(2))  # (B, H, N, d/H) -> (B, N, d)
        x = self.attention_norm(x + F.dropout(attended, dropout))
        fed = self.feedforward_out(F.dropout(F.relu(self.feedforward_in(x)), dropout))  # (B, N, d)
        normed: Tensor = self.feedforward_norm(x + F.dropout(fed, dropout))
        return normed

    def _by_head(self, x: Tensor) -> Tensor:
        """Splits the last dimension by attention head.

        Shapes: B episodes, N points, d = d_model, H heads; (B, N, d) -> (B, H, N, d/H).
        """
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # (B, N, d) -> (B, H, N, d/H)


def input_scale(config: NeuralProcess, embedding: Embedding) -> float:
    """Returns the factor by which the model multiplies embeddings, so that their components have unit variance.

    An embedding is the concatenation of one unit vector of w numbers for each template, so w = dimension / templates. The
    components of a unit vector of w numbers have variance 1/w. After multiplication by sqrt(w), the components have variance 1.
    The factor is 1 if the run spec sets `input_scale` to "none".
    """
    if config.input_scale == "none":
        return 1.0
    return math.sqrt(embedding.dimension / len(embedding.templates))
