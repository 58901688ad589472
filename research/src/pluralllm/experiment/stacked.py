"""Runs the predictors of many clients in one pass: their parameters are stacked along a first axis.

The layers of all predictors are then computed together (stacked_models.py). No client's values are mixed with another
client's, so each client gets, within rounding, the values that `pluralllm.client.work.train` gives when it trains the client
alone. With dropout, only the distribution of the values is the same, because the masks are others.

Shapes: K clients, B episodes of each client in a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pluralllm.client.work.losses import prediction_loss
from pluralllm.client.work.train import pull_to_base
from pluralllm.common.errors.tree import NotFinite
from pluralllm.common.predictor.data import Batch, Episode, GroupData, make_batch
from pluralllm.common.predictor.interface import Prediction
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment.stacked_models import stacked_model

Flat = NDArray[np.float32]  # one predictor's values in layout order (sorted by name)


class StackedPredictors:
    """Stack of K predictors whose parameters have equal names and shapes.

    `values` maps the name of each parameter to one tensor. The first axis of the tensor has length K, one entry for each
    predictor.
    """

    def __init__(self, spec: RunSpec, starts: Sequence[Flat], device: torch.device) -> None:
        self.count = len(starts)
        self.values: dict[str, Tensor] = {}
        self._model = stacked_model(spec)
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
        whole = torch.cat([self.values[name].detach().reshape(self.count, -1) for name, _ in self._model.pieces], dim=1)
        if not whole.isfinite().all():
            broken = {name: int((~tensor.isfinite()).sum()) for name, tensor in self.values.items()}
            raise NotFinite(tensor=next(name for name, count in broken.items() if count), count=sum(broken.values()))
        return list(whole.cpu().numpy())

    def __call__(self, batch: Batch, *, training: bool) -> Prediction:
        """Predicts a batch of K * B episodes: B episodes for each of K clients; the episodes of one client follow each other."""
        return self._model(self.values, batch, training=training)

    def _split(self, starts: Sequence[Flat]) -> dict[str, Tensor]:
        stacked = torch.from_numpy(np.stack(starts))  # (K, values)
        sizes = [int(np.prod(shape)) for _, shape in self._model.pieces]
        tensors = torch.split(stacked, sizes, dim=1)
        return {
            name: tensor.reshape(-1, *shape) for (name, shape), tensor in zip(self._model.pieces, tensors, strict=True)
        }


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
