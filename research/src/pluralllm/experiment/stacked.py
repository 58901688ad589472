"""Runs the predictors of many clients in one pass: their parameters are stacked along a first axis.

A layer of all predictors is then one matrix product. No client's values are mixed with another client's, so each client
gets, within rounding, the values that `pluralllm.client.work.train` gives when it trains the client alone. With dropout,
only the distribution of the values is the same, because one mask is drawn for all clients of a pass. Context and targets
go through a layer as one sequence; context points and target points attend to the context points only.

Shapes: K clients, B episodes of each client in a step, C context points, T target points, N = C + T, D embedding dimension,
d = d_model, H heads. A point is one option of one question.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from numpy.typing import NDArray
from torch import Tensor

from pluralllm.client.work.losses import prediction_loss
from pluralllm.client.work.train import pull_to_base
from pluralllm.common.errors.tree import NotFinite
from pluralllm.common.predictor.architecture import parameters
from pluralllm.common.predictor.data import Batch, Episode, GroupData, make_batch
from pluralllm.common.predictor.model import Prediction, input_scale
from pluralllm.common.words.spec import RunSpec

Flat = NDArray[np.float32]  # one predictor's values in layout order (sorted by name)
QUERY, KEY_VALUE = ".query", ".key_value"  # the rows of attention_in in two tensors, as targets need no keys and values


class StackedPredictors:
    """Stack of K predictors whose parameters have equal names and shapes.

    `values` maps the name of each parameter to one tensor. The first axis of the tensor has length K, one entry for each
    predictor.
    """

    def __init__(self, spec: RunSpec, starts: Sequence[Flat], device: torch.device) -> None:
        self.count = len(starts)
        self.values: dict[str, Tensor] = {}
        self._config = spec.predictor
        self._scale = input_scale(spec.predictor, spec.embedding)
        self._share_scale = spec.predictor.share_scale
        self._shapes = _pieces(spec)
        for name, tensor in self._split(starts).items():
            self.values[name] = tensor.to(device, copy=True).requires_grad_()

    @torch.no_grad()
    def restart(self, starts: Sequence[Flat]) -> None:
        """Replaces the parameter values of all predictors. starts: one array in layout order for each predictor."""
        for name, tensor in self._split(starts).items():
            self.values[name].copy_(tensor)

    def flat(self) -> list[Flat]:
        """Returns each predictor's values as one array in layout order (sorted by parameter name).

        Raises NotFinite if a value is infinite or NaN.
        """
        whole = torch.cat([self.values[name].detach().reshape(self.count, -1) for name, _ in self._shapes], dim=1)
        if not whole.isfinite().all():
            broken = {name: int((~tensor.isfinite()).sum()) for name, tensor in self.values.items()}
            raise NotFinite(tensor=next(name for name, count in broken.items() if count), count=sum(broken.values()))
        return list(whole.cpu().numpy())

    def __call__(self, batch: Batch, *, training: bool) -> Prediction:
        """Predicts a batch of K * B episodes: B episodes for each of K clients; the episodes of one client follow each other."""
        embeddings = torch.cat([batch.context, batch.targets], dim=1)  # (K*B, N, D)
        shares = torch.cat([batch.context_shares, torch.zeros_like(batch.target_shares)], dim=1)  # (K*B, N)
        return self.predict(self.embed(embeddings, shares), batch.context_is_real, training=training)

    def embed(self, embeddings: Tensor, shares: Tensor) -> Tensor:
        """Embeds points for the first layer: embeddings (K*B, N, D) and shares (K*B, N) -> (K, B*N, d).

        K clients, B episodes of each client, N points of an episode, D numbers in an embedding, d the model's width.
        The result for a target point does not depend on the context, so it can be used again with every context.
        """
        y = shares.unsqueeze(-1) * self._share_scale  # (K*B, N, 1)
        x = torch.cat([embeddings * self._scale, y], dim=-1)  # (K*B, N, D + 1)
        x = x.view(self.count, -1, x.shape[-1])  # (K, B*N, D + 1)
        last = self._config.embedder_layers - 1
        for number in range(last):
            x = F.relu(self._linear(x, f"embedder.{number}"))  # (K, B*N, d)
        return self._linear(x, f"embedder.{last}")

    def predict(self, x: Tensor, context_is_real: Tensor, *, training: bool) -> Prediction:
        """Predicts from embedded points: (K, B*N, d) -> mean and logarithm of the standard deviation, (K*B, T) each.

        context_is_real: (K*B, C), False for padding. In each of the B episodes of K clients, the C context points come before the
        T target points; N = C + T, and d is the model's width.
        """
        dropout = self._config.dropout if training else 0.0
        rows, context = context_is_real.shape
        attended = context_is_real[:, None, None, :]  # (K*B, 1, 1, C)
        for number in range(self._config.layers):
            name = f"layers.{number}"
            points = x.view(rows, -1, x.shape[-1])  # (K*B, N, d)
            keys, values = self._keys_and_values(points[:, :context].reshape(self.count, -1, x.shape[-1]), rows, name)
            if number + 1 == self._config.layers:  # nothing reads the context after the last keys and values
                x = points[:, context:].reshape(self.count, -1, x.shape[-1])  # (K, B*T, d)
            x = self._layer(x, keys, values, attended, name, dropout)
        out = self._linear(F.relu(self._linear(x, "head.0")), "head.1")  # (K, B*T, 2)
        mean, log_std = out.view(rows, -1, 2).unbind(-1)  # (K*B, T) each
        return Prediction(mean, log_std)

    def _split(self, starts: Sequence[Flat]) -> dict[str, Tensor]:
        stacked = torch.from_numpy(np.stack(starts))  # (K, values)
        sizes = [int(np.prod(shape)) for _, shape in self._shapes]
        tensors = torch.split(stacked, sizes, dim=1)
        return {name: tensor.reshape(-1, *shape) for (name, shape), tensor in zip(self._shapes, tensors, strict=True)}

    def _keys_and_values(self, x: Tensor, rows: int, name: str) -> tuple[Tensor, Tensor]:
        both = self._linear(x, f"{name}.attention_in", KEY_VALUE)  # (K, B*C, 2d)
        heads = both.view(rows, -1, 2, self._config.heads, x.shape[-1] // self._config.heads)  # (K*B, C, 2, H, d/H)
        keys, values = heads.permute(2, 0, 3, 1, 4)  # (K*B, H, C, d/H) each
        return keys, values

    def _layer(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor, name: str, dropout: float) -> Tensor:
        rows, heads, _, width = keys.shape
        queries = self._linear(x, f"{name}.attention_in", QUERY).view(rows, -1, heads, width).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)
        attended = self._linear(mixed.transpose(1, 2).reshape(x.shape), f"{name}.attention_out")  # (K, B*N, d)
        x = self._norm(x + F.dropout(attended, dropout), f"{name}.attention_norm")
        hidden = F.dropout(F.relu(self._linear(x, f"{name}.feedforward_in")), dropout)
        fed = self._linear(hidden, f"{name}.feedforward_out")
        return self._norm(x + F.dropout(fed, dropout), f"{name}.feedforward_norm")

    def _linear(self, x: Tensor, name: str, rows: str = "") -> Tensor:
        weight, bias = self.values[f"{name}.weight{rows}"], self.values[f"{name}.bias{rows}"]  # (K, out, in), (K, out)
        return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))  # (K, points, in) -> (K, points, out)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.values[f"{name}.weight"], self.values[f"{name}.bias"]  # (K, d)
        return torch.addcmul(bias.unsqueeze(1), F.layer_norm(x, x.shape[-1:]), weight.unsqueeze(1))


@dataclass(frozen=True, slots=True)
class Learnt:
    """Batch of one gradient step, with the predictions of the clients' models before the step."""

    predicted: Prediction  # detached from the gradient graph
    batch: Batch


class Learners:
    """Trains several predictors at the same time, each on its own episodes, and holds the moments (state) of their optimizers."""

    def __init__(self, spec: RunSpec, starts: Sequence[Flat], device: torch.device) -> None:
        training = spec.training
        self._training = training
        self._device = device
        self.stack = StackedPredictors(spec, starts, device)
        tensors = list(self.stack.values.values())
        self._optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(tensors, lr=training.learning_rate)
            if training.optimizer == "sgd"
            else torch.optim.Adam(tensors, lr=training.learning_rate, fused=device.type != "mps")
        )
        self._anchors = [tensor.detach().clone() for tensor in tensors] if training.proximal_mu else tensors

    def restart(self, base: Flat) -> None:
        """Sets the parameter values of all predictors to the values `base`, when a round begins.

        The moments of the optimizers are kept or cleared, as the run spec says.
        """
        self.stack.restart([base] * self.stack.count)
        if self._training.proximal_mu:
            self._anchors = [tensor.detach().clone() for tensor in self.stack.values.values()]
        if not self._training.keep_optimizer_state:
            self._optimizer.state.clear()

    def learn(self, episodes: Sequence[tuple[GroupData, Episode]], rate: float) -> Learnt:
        """Takes one gradient step with every predictor.

        episodes: the episodes of the first predictor, then the episodes of the second, and so on, equally many for each.
        rate: learning rate of the step. Returns the batch and the predictions before the step.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        batch = make_batch(episodes).to(self._device)
        predicted = self.stack(batch, training=True)
        losses = prediction_loss(predicted, batch, self._training, self.stack.count)  # (K,)
        self._optimizer.zero_grad()
        losses.sum().backward()  # type: ignore[no-untyped-call]
        tensors = list(self.stack.values.values())
        pull_to_base(tensors, self._anchors, self._training.proximal_mu)
        if self._training.gradient_clip_norm is not None:
            clip_each([tensor.grad for tensor in tensors if tensor.grad is not None], self._training.gradient_clip_norm)
        self._optimizer.step()
        return Learnt(Prediction(predicted.mean.detach(), predicted.log_std.detach()), batch)


@torch.no_grad()
def clip_each(gradients: Sequence[Tensor], limit: float) -> None:
    """Clips the gradient of each client in place, so that its norm is at most `limit`.

    gradients: for each parameter, a tensor that holds the gradients of all clients along its first axis.
    """
    squares = torch.stack([(gradient.flatten(1) ** 2).sum(1) for gradient in gradients]).sum(0)  # (K,)
    factors = (limit / (squares.sqrt() + 1e-6)).clamp(max=1.0)  # (K,)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))


def _pieces(spec: RunSpec) -> list[tuple[str, tuple[int, ...]]]:
    """Returns names and shapes of the parameters in layout order (sorted by name).

    The parameter attention_in becomes two pieces: the query rows, and the rows of keys and values.
    """
    shapes: list[tuple[str, tuple[int, ...]]] = []
    for parameter in sorted(parameters(spec.predictor, spec.embedding.dimension), key=lambda p: p.name):
        if ".attention_in." in parameter.name:
            d, rest = spec.predictor.d_model, parameter.shape[1:]
            shapes += [(parameter.name + QUERY, (d, *rest)), (parameter.name + KEY_VALUE, (2 * d, *rest))]
        else:
            shapes.append((parameter.name, parameter.shape))
    return shapes
