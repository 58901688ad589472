"""The predictors of many clients trained in one pass: every parameter stacked along a first axis, one optimizer over all.

What one client does is what `client.train` does to it alone, within rounding: no client's values ever meet another's.

K: clients, B: episodes of each in a step, C: context points, T: target points, D: embedding dimension, d: d_model, H: heads.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from numpy.typing import NDArray
from torch import Tensor

from pluralllm.client.train import learning_rate, prediction_loss
from pluralllm.common.architecture import parameters
from pluralllm.common.data import Batch, Episode, GroupData, draw_episode, make_batch
from pluralllm.common.model import Prediction, input_scale
from pluralllm.common.spec import RunSpec

Flat = NDArray[np.float32]


class StackedPredictors:
    """K predictors of one shape. `values` maps a parameter's name to (K, *shape)."""

    def __init__(self, spec: RunSpec, starts: Sequence[Flat], device: torch.device) -> None:
        """`starts`: each predictor's values as one array in layout order (sorted by name)."""
        self._config = spec.predictor
        self._scale = input_scale(spec.predictor, spec.embedding)
        self._clients = len(starts)
        stacked = torch.from_numpy(np.stack(starts))  # (K, values)
        self.values: dict[str, Tensor] = {}
        position = 0
        for parameter in sorted(parameters(spec.predictor, spec.embedding.dimension), key=lambda p: p.name):
            size = int(np.prod(parameter.shape))
            part = stacked[:, position : position + size].reshape(self._clients, *parameter.shape)
            self.values[parameter.name] = part.clone().to(device).requires_grad_()
            position += size

    def flat(self) -> list[Flat]:
        """Each predictor's values in layout order."""
        whole = torch.cat([v.detach().reshape(self._clients, -1) for _, v in sorted(self.values.items())], dim=1)
        return list(whole.cpu().numpy())

    def __call__(self, batch: Batch, *, training: bool) -> Prediction:
        """Rows of the batch: K times B, the B of one client together."""
        dropout = self._config.dropout if training else 0.0
        attended = batch.context_is_real[:, None, None, :]  # (K*B, 1, 1, C)
        x = self._embed(batch.context, batch.context_shares)  # (K*B, C, d)
        t = self._embed(batch.targets, torch.zeros_like(batch.target_shares))  # (K*B, T, d)
        for number in range(self._config.layers):
            name = f"layers.{number}"
            keys, values = self._keys_and_values(x, name)
            t = self._layer(t, keys, values, attended, name, dropout)  # (K*B, T, d)
            if number + 1 < self._config.layers:  # nothing reads the context after the last keys and values
                x = self._layer(x, keys, values, attended, name, dropout)  # (K*B, C, d)
        out = self._linear(F.relu(self._linear(t, "head.0")), "head.1")  # (K*B, T, 2)
        mean, log_std = out.unbind(-1)
        return Prediction(mean, log_std)

    def _embed(self, embeddings: Tensor, shares: Tensor) -> Tensor:
        x = torch.cat([embeddings * self._scale, shares.unsqueeze(-1)], dim=-1)  # (K*B, N, D + 1)
        last = self._config.embedder_layers - 1
        for number in range(last):
            x = F.relu(self._linear(x, f"embedder.{number}"))  # (K*B, N, d)
        return self._linear(x, f"embedder.{last}")

    def _keys_and_values(self, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
        d = self._config.d_model
        both = self._linear(x, f"{name}.attention_in", slice(d, None))  # (K*B, C, 2d)
        keys, values = both.chunk(2, dim=-1)
        return self._by_head(keys), self._by_head(values)

    def _layer(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor, name: str, dropout: float) -> Tensor:
        queries = self._by_head(self._linear(x, f"{name}.attention_in", slice(0, self._config.d_model)))
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)
        attended = self._linear(mixed.transpose(1, 2).flatten(2), f"{name}.attention_out")  # (K*B, N, d)
        x = self._norm(x + F.dropout(attended, dropout), f"{name}.attention_norm")
        hidden = F.dropout(F.relu(self._linear(x, f"{name}.feedforward_in")), dropout)
        fed = self._linear(hidden, f"{name}.feedforward_out")
        return self._norm(x + F.dropout(fed, dropout), f"{name}.feedforward_norm")

    def _linear(self, x: Tensor, name: str, rows: slice = slice(None)) -> Tensor:
        weight, bias = (
            self.values[f"{name}.weight"][:, rows],
            self.values[f"{name}.bias"][:, rows],
        )  # (K, out, in), (K, out)
        flat = x.reshape(self._clients, -1, x.shape[-1])  # (K, B*N, in)
        return torch.baddbmm(bias.unsqueeze(1), flat, weight.transpose(1, 2)).reshape(*x.shape[:-1], weight.shape[1])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.values[f"{name}.weight"], self.values[f"{name}.bias"]  # (K, d)
        normed = F.layer_norm(x, x.shape[-1:]).reshape(self._clients, -1, x.shape[-1])  # (K, B*N, d)
        return (normed * weight.unsqueeze(1) + bias.unsqueeze(1)).reshape(x.shape)

    def _by_head(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self._config.heads, -1).transpose(1, 2)  # (K*B, N, d) -> (K*B, H, N, d/H)


def train_together(
    spec: RunSpec,
    starts: Sequence[Flat],
    groups: Sequence[GroupData],
    seeds: Sequence[int],
    first_step: int,
    device: torch.device,
) -> tuple[list[Flat], list[float]]:
    """One round's local steps of every client at once: their new values, and their mean losses.

    The same episodes as `client.train.train` draws from these seeds. A fresh optimizer: moments are not kept here.
    """
    training = spec.training
    stack = StackedPredictors(spec, starts, device)
    tensors = list(stack.values.values())
    optimizer = (
        torch.optim.SGD(tensors, lr=training.learning_rate)
        if training.optimizer == "sgd"
        else torch.optim.Adam(tensors, lr=training.learning_rate)
    )
    generators = [np.random.default_rng(seed) for seed in seeds]
    usable = [data.split(spec.evaluation.holdout_share)[0] for data in groups]
    totals = torch.zeros(len(groups))
    torch.manual_seed(seeds[0])
    for step in range(training.local_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training, first_step + step)
        pairs: list[tuple[GroupData, Episode]] = [
            (data, draw_episode(mine, training.episodes, rng))
            for data, mine, rng in zip(groups, usable, generators, strict=True)
            for _ in range(training.batch_episodes)
        ]
        batch = make_batch(pairs).to(device)
        losses = mean_losses(stack, batch, spec, len(groups))  # (K,)
        optimizer.zero_grad()
        losses.sum().backward()  # type: ignore[no-untyped-call]
        if training.gradient_clip_norm is not None:
            clip_each(stack, training.gradient_clip_norm)
        optimizer.step()
        totals += losses.detach().cpu()
    return stack.flat(), (totals / training.local_steps).tolist()


def mean_losses(stack: StackedPredictors, batch: Batch, spec: RunSpec, clients: int) -> Tensor:
    """Each client's loss on its own rows, shape (clients,)."""
    return prediction_loss(stack(batch, training=True), batch, spec.training.loss, clients)


def clip_each(stack: StackedPredictors, limit: float) -> None:
    """Each client's own gradient to a norm of at most `limit`, as torch's clip_grad_norm_ does to one."""
    gradients = [value.grad for value in stack.values.values() if value.grad is not None]
    squares = torch.stack([(gradient.flatten(1) ** 2).sum(1) for gradient in gradients]).sum(0)  # (K,)
    factors = (limit / (squares.sqrt() + 1e-6)).clamp(max=1.0)  # (K,)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))
