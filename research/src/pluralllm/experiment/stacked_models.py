"""The forward passes of many clients' predictors at once, one class for each way to compute them.

The parameters of all clients are stacked along a first axis. No client's values are mixed with another client's. With dropout,
each client has masks of its own, but other masks than when it trains alone.

Shapes: K clients, B episodes of each client in a step, C context points, T target points, N = C + T, D embedding dimension,
d = d_model, H heads. A point is one option of one question.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from pluralllm.common.predictor.architecture import layout_for, parameters
from pluralllm.common.predictor.data import Batch
from pluralllm.common.predictor.interface import Points, Prediction
from pluralllm.common.predictor.model import new_predictor
from pluralllm.common.predictor.neural_process import input_scale
from pluralllm.common.words.embedding import Embedding
from pluralllm.common.words.predictors import NeuralProcess
from pluralllm.common.words.spec import RunSpec

Piece = tuple[str, tuple[int, ...]]  # name and shape of one tensor of a client's parameters
QUERY, KEY_VALUE = ".query", ".key_value"  # the rows of attention_in in two tensors, as targets need no keys and values


class StackedModel(Protocol):
    """The forward pass of K predictors of one architecture."""

    pieces: tuple[Piece, ...]  # in layout order (sorted by parameter name)

    def __call__(self, values: Mapping[str, Tensor], batch: Batch, *, training: bool) -> Prediction:
        """Predicts a batch of K * B episodes: B episodes for each of K clients; the episodes of one client follow each other.

        values: one tensor for each piece, with a first axis of length K.
        """
        ...


def stacked_model(spec: RunSpec) -> StackedModel:
    """Returns the forward pass of the run spec's predictor."""
    if isinstance(spec.predictor, NeuralProcess):
        return StackedNeuralProcess(spec.predictor, spec.embedding)
    return MappedPredictor(spec)


class MappedPredictor:
    """A predictor that torch maps over the clients."""

    def __init__(self, spec: RunSpec) -> None:
        self._model = new_predictor(spec.predictor, spec.embedding)
        self.pieces = layout_for(spec).tensors

    def __call__(self, values: Mapping[str, Tensor], batch: Batch, *, training: bool) -> Prediction:
        """Predicts a batch, as `StackedModel` says."""
        self._model.train(training)
        count = len(next(iter(values.values())))

        def predict(own: dict[str, Tensor], *tensors: Tensor) -> tuple[Tensor, Tensor]:
            shares, *points = tensors
            inputs = Points(*points[:4]), shares, Points(*points[4:])
            predicted: Prediction = torch.func.functional_call(self._model, own, inputs)
            return predicted.mean, predicted.log_std

        tensors = (batch.context_shares, *_tensors(batch.context), *_tensors(batch.targets))
        by_client = [tensor.view(count, -1, *tensor.shape[1:]) for tensor in tensors]  # (K, B, ...)
        mapped = torch.func.vmap(predict, randomness="different")
        mean, log_std = mapped(dict(values), *by_client)  # (K, B, T) each
        return Prediction(mean.flatten(0, 1), log_std.flatten(0, 1))


def _tensors(points: Points) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return points.embeddings, points.positions, points.question, points.is_real


class StackedNeuralProcess:
    """The transformer of tnp-d/1 for many clients: each layer of all clients is one matrix product.

    Context and targets go through a layer as one sequence; all points attend to the context points only. With dropout, one mask
    is drawn for all clients of a pass.
    """

    def __init__(self, config: NeuralProcess, embedding: Embedding) -> None:
        self._config = config
        self._scale = input_scale(config, embedding)
        self.pieces = _pieces(config, embedding.dimension)

    def __call__(self, values: Mapping[str, Tensor], batch: Batch, *, training: bool) -> Prediction:
        """Predicts a batch, as `StackedModel` says."""
        embeddings = torch.cat([batch.context.embeddings, batch.targets.embeddings], dim=1)  # (K*B, N, D)
        shares = torch.cat([batch.context_shares, torch.zeros_like(batch.target_shares)], dim=1)  # (K*B, N)
        x = self._embed(values, embeddings, shares)  # (K, B*N, d)
        dropout = self._config.dropout if training else 0.0
        count, (rows, context) = len(x), batch.context.is_real.shape
        attended = batch.context.is_real[:, None, None, :]  # (K*B, 1, 1, C)
        for number in range(self._config.layers):
            name = f"layers.{number}"
            points = x.view(rows, -1, x.shape[-1])  # (K*B, N, d)
            of_context = points[:, :context].reshape(count, -1, x.shape[-1])  # (K, B*C, d)
            keys_and_values = self._keys_and_values(values, of_context, rows, name)
            if number + 1 == self._config.layers:  # nothing reads the context after the last keys and values
                x = points[:, context:].reshape(count, -1, x.shape[-1])  # (K, B*T, d)
            x = self._layer(values, x, keys_and_values, attended, name, dropout)
        out = _linear(values, F.relu(_linear(values, x, "head.0")), "head.1")  # (K, B*T, 2)
        mean, log_std = out.view(rows, -1, 2).unbind(-1)  # (K*B, T) each
        return Prediction(mean, log_std)

    def _embed(self, values: Mapping[str, Tensor], embeddings: Tensor, shares: Tensor) -> Tensor:
        """Embeds points for the first layer: embeddings (K*B, N, D) and shares (K*B, N) -> (K, B*N, d).

        K clients, B episodes of each client, N points of an episode, D numbers in an embedding, d the model's width.
        """
        y = shares.unsqueeze(-1) * self._config.share_scale  # (K*B, N, 1)
        x = torch.cat([embeddings * self._scale, y], dim=-1)  # (K*B, N, D + 1)
        x = x.view(len(values["embedder.0.weight"]), -1, x.shape[-1])  # (K, B*N, D + 1)
        last = self._config.embedder_layers - 1
        for number in range(last):
            x = F.relu(_linear(values, x, f"embedder.{number}"))  # (K, B*N, d)
        return _linear(values, x, f"embedder.{last}")

    def _keys_and_values(self, values: Mapping[str, Tensor], x: Tensor, rows: int, name: str) -> tuple[Tensor, Tensor]:
        both = _linear(values, x, f"{name}.attention_in", KEY_VALUE)  # (K, B*C, 2d)
        heads = both.view(rows, -1, 2, self._config.heads, x.shape[-1] // self._config.heads)  # (K*B, C, 2, H, d/H)
        of_keys, of_values = heads.permute(2, 0, 3, 1, 4)  # (K*B, H, C, d/H) each
        return of_keys, of_values

    def _layer(
        self,
        values: Mapping[str, Tensor],
        x: Tensor,
        keys_and_values: tuple[Tensor, Tensor],
        mask: Tensor,
        name: str,
        dropout: float,
    ) -> Tensor:
        rows, heads, _, width = keys_and_values[0].shape
        queries = _linear(values, x, f"{name}.attention_in", QUERY).view(rows, -1, heads, width).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(queries, *keys_and_values, attn_mask=mask, dropout_p=dropout)
        joined = mixed.transpose(1, 2).reshape(x.shape)  # (K, B*N, d)
        attended = _linear(values, joined, f"{name}.attention_out")  # (K, B*N, d)
        x = _norm(values, x + F.dropout(attended, dropout), f"{name}.attention_norm")
        hidden = F.dropout(F.relu(_linear(values, x, f"{name}.feedforward_in")), dropout)
        fed = _linear(values, hidden, f"{name}.feedforward_out")
        return _norm(values, x + F.dropout(fed, dropout), f"{name}.feedforward_norm")


def _linear(values: Mapping[str, Tensor], x: Tensor, name: str, rows: str = "") -> Tensor:
    weight, bias = values[f"{name}.weight{rows}"], values[f"{name}.bias{rows}"]  # (K, out, in), (K, out)
    return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))  # (K, points, in) -> (K, points, out)


def _norm(values: Mapping[str, Tensor], x: Tensor, name: str) -> Tensor:
    weight, bias = values[f"{name}.weight"], values[f"{name}.bias"]  # (K, d)
    return torch.addcmul(bias.unsqueeze(1), F.layer_norm(x, x.shape[-1:]), weight.unsqueeze(1))


def _pieces(config: NeuralProcess, embedding_dimension: int) -> tuple[Piece, ...]:
    """Returns names and shapes of the parameters in layout order (sorted by name).

    The parameter attention_in becomes two pieces: the query rows, and the rows of keys and values.
    """
    pieces: list[Piece] = []
    for parameter in parameters(config, embedding_dimension):
        if ".attention_in." in parameter.name:
            d, rest = config.d_model, parameter.shape[1:]
            pieces += [(parameter.name + QUERY, (d, *rest)), (parameter.name + KEY_VALUE, (2 * d, *rest))]
        else:
            pieces.append((parameter.name, parameter.shape))
    return tuple(pieces)
