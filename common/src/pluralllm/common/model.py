"""The predictor: a transformer neural process (TNP-D), written for the attention it really has.

A point is [embedding ; y]. Context points carry the group's share y, targets carry 0. Every token attends to the context
only: context to context (self-attention), targets to context (cross-attention with the same weights), so targets are
independent of one another, all are scored in one pass, and the context's keys and values can be kept. There are no positions:
the order of the context does not matter. Post-norm layers, ReLU, as the paper's.

B: episodes, C: context points, T: target points, D: embedding dimension, d: d_model, H: heads.
Sources: arXiv 2503.09925 (PluralLLM), arXiv 2310.11523 (GPO), arXiv 2207.04179 (TNP-D). Parameters: architecture.py.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from numpy.typing import NDArray
from torch import Tensor, nn

from pluralllm.common.architecture import OUTPUTS
from pluralllm.common.spec import Embedding
from pluralllm.common.spec import Predictor as PredictorConfig
from pluralllm.common.weights import Layout


@dataclass(frozen=True, slots=True)
class EncodedContext:
    """What targets need of a context: keys and values of each layer, [B, H, C, d/H], and which are real, [B, 1, 1, C]."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    is_real: Tensor


class Layer(nn.Module):
    """One post-norm encoder layer whose queries and keys may be different points."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        d = config.d_model
        self.heads = config.heads
        self.dropout = config.dropout
        self.attention_in = nn.Linear(d, 3 * d)
        self.attention_out = nn.Linear(d, d)
        self.attention_norm = nn.LayerNorm(d)
        self.feedforward_in = nn.Linear(d, config.feedforward)
        self.feedforward_out = nn.Linear(config.feedforward, d)
        self.feedforward_norm = nn.LayerNorm(d)

    def keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, d) -> twice (B, H, C, d/H)."""
        d = context.shape[-1]
        projected = F.linear(context, self.attention_in.weight[d:], self.attention_in.bias[d:])  # (B, C, 2d)
        keys, values = projected.chunk(2, dim=-1)
        return self._split(keys), self._split(values)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, is_real: Tensor) -> Tensor:
        """(B, N, d) attends to the given keys and values; is_real masks padded context points."""
        d = x.shape[-1]
        queries = self._split(F.linear(x, self.attention_in.weight[:d], self.attention_in.bias[:d]))  # (B, H, N, d/H)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=is_real)  # (B, H, N, d/H)
        attended = self.attention_out(mixed.transpose(1, 2).flatten(2))  # (B, N, d)
        x = self.attention_norm(x + self._drop(attended))
        fed = self.feedforward_out(self._drop(F.relu(self.feedforward_in(x))))
        normed: Tensor = self.feedforward_norm(x + self._drop(fed))
        return normed

    def _split(self, x: Tensor) -> Tensor:
        batch, points, d = x.shape
        return x.view(batch, points, self.heads, d // self.heads).transpose(1, 2)  # (B, H, N, d/H)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class Predictor(nn.Module):
    """Mean and log-std of a group's share for each target point."""

    def __init__(self, config: PredictorConfig, embedding_dimension: int, input_scale: float = 1.0) -> None:
        super().__init__()
        widths = [embedding_dimension + 1, *[config.d_model] * config.embedder_layers]
        self.input_scale = input_scale
        self.embedder = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.head = nn.ModuleList([nn.Linear(config.d_model, config.d_model), nn.Linear(config.d_model, OUTPUTS)])

    def forward(
        self, context: Tensor, shares: Tensor, context_is_real: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """context (B, C, D), shares (B, C), context_is_real (B, C) bool, targets (B, T, D) -> mean, log-std, each (B, T)."""
        return self.predict(self.encode(context, shares, context_is_real), targets)

    def encode(self, context: Tensor, shares: Tensor, is_real: Tensor) -> EncodedContext:
        """The context on its own; keep it to score many targets. Every episode has at least one real context point."""
        mask = is_real[:, None, None, :]  # (B, 1, 1, C)
        x = self._embed(context, shares)  # (B, C, d)
        keys, values = [], []
        for layer in self.layers:
            assert isinstance(layer, Layer)
            k, v = layer.keys_and_values(x)
            keys.append(k)
            values.append(v)
            x = layer(x, k, v, mask)
        return EncodedContext(tuple(keys), tuple(values), mask)

    def predict(self, encoded: EncodedContext, targets: Tensor) -> tuple[Tensor, Tensor]:
        """targets (B, T, D) -> mean and log-std of each target's share, (B, T)."""
        x = self._embed(targets, torch.zeros_like(targets[..., 0]))  # (B, T, d)
        for layer, keys, values in zip(self.layers, encoded.keys, encoded.values, strict=True):
            x = layer(x, keys, values, encoded.is_real)
        first, last = self.head
        mean, log_std = last(F.relu(first(x))).unbind(-1)  # (B, T, 2) -> (B, T), (B, T)
        return mean, log_std

    def _embed(self, points: Tensor, shares: Tensor) -> Tensor:
        x = torch.cat([points * self.input_scale, shares.unsqueeze(-1)], dim=-1)  # (B, N, D + 1)
        last = len(self.embedder) - 1
        for index, linear in enumerate(self.embedder):
            x = linear(x) if index == last else F.relu(linear(x))
        return x  # (B, N, d)

    def load(self, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        """Takes over named values; names and shapes must be exactly this model's."""
        self.load_state_dict({name: torch.from_numpy(np.array(values)) for name, values in tensors.items()})

    def flat(self, layout: Layout) -> Iterator[NDArray[np.float32]]:
        """The values as flat arrays in the layout's order."""
        state = self.state_dict()
        for name, _ in layout.tensors:
            yield state[name].detach().cpu().numpy().ravel()


def input_scale(config: PredictorConfig, embedding: Embedding) -> float:
    """What embeddings are multiplied by: for unit vectors of `width` numbers, sqrt(width) gives each number unit variance."""
    if config.input_scale == "none":
        return 1.0
    return math.sqrt(embedding.dimension / len(embedding.templates))


def new_predictor(config: PredictorConfig, embedding: Embedding) -> Predictor:
    """A predictor for a run spec; its values are to be loaded."""
    return Predictor(config, embedding.dimension, input_scale(config, embedding))
