"""Inversion of one update: shares are sought with which a replay of the local training gives the same update.

The replay is the service's training, written so that it can be differentiated by the shares: the same episodes, the same
dropout and the same steps of Adam. It needs the seed of the task. An attacker that does not know the seed can only try with a
seed of its own.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from leak.setting import Flat, Shares, model_of, of_question, trained_questions
from pluralllm.client.work.losses import prediction_loss
from pluralllm.client.work.train import learning_rate
from pluralllm.common.predictor.data import (
    Episode,
    GroupData,
    draw_episode,
    log_softmax_by_question,
    make_batch,
    step_sizes,
)
from pluralllm.common.words.spec import RunSpec

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # of torch's Adam


@dataclass(frozen=True, slots=True)
class Step:
    """One local step, as the seed decides it: the episode, and the power that its shares are raised to."""

    episode: Episode
    power: float


class Replay:
    """The training of one task, as a differentiable function of the shares. round_number and seed belong to the task."""

    def __init__(self, spec: RunSpec, base: Flat, data: GroupData, seed: int, round_number: int) -> None:
        self._spec, self._data, self._seed = spec, data, seed
        self._first_step = (round_number - 1) * spec.training.local_steps
        self._model = model_of(spec, base).train()
        self._base: dict[str, Tensor] = dict(sorted(self._model.named_parameters()))
        self.question = torch.from_numpy(of_question(data))[None]  # (1, P)
        rng = np.random.default_rng(seed)
        usable = trained_questions(spec, data)
        self.steps = []
        for number in range(spec.training.local_steps):  # the order of random draws is that of train.draw_episodes
            sizes = step_sizes(spec.seed, self._first_step + number)
            episode = draw_episode(usable, spec.training.episodes, sizes, rng)
            self.steps.append(Step(episode, math.exp(rng.normal(0, spec.training.sharpness_spread))))

    @property
    def targets(self) -> tuple[int, ...]:
        """The questions that are a target of at least one step."""
        return tuple(sorted({number for step in self.steps for number in step.episode.targets}))

    def delta(self, log_shares: Tensor) -> Tensor:
        """Returns the update that this task makes from shares. log_shares: (P,), need not be normalised -> (V,)."""
        torch.manual_seed(self._seed)
        values = dict(self._base)
        first = {name: torch.zeros_like(value) for name, value in values.items()}
        second = dict(first)
        for number, step in enumerate(self.steps, 1):
            gradients = torch.autograd.grad(
                self._loss(values, log_shares, step), list(values.values()), create_graph=True
            )
            rate = learning_rate(self._spec, self._first_step + number - 1)
            for (name, value), gradient in zip(values.items(), gradients, strict=True):
                first[name] = BETA1 * first[name] + (1 - BETA1) * gradient
                second[name] = BETA2 * second[name] + (1 - BETA2) * gradient**2
                corrected = (second[name] / (1 - BETA2**number) + 1e-30).sqrt()  # the slope of a root at 0 is infinite
                values[name] = value - rate / (1 - BETA1**number) * first[name] / (corrected + EPSILON)
        return torch.cat([(values[name] - base).flatten() for name, base in self._base.items()])

    def _loss(self, values: dict[str, Tensor], log_shares: Tensor, step: Step) -> Tensor:
        sharpened = (step.power * log_shares)[None]  # (1, P)
        shares = log_softmax_by_question(sharpened, self.question, len(self._data.questions))[0].exp()
        context, targets = (self._data.points(part) for part in (step.episode.context, step.episode.targets))
        empty = make_batch([(self._data, step.episode)])
        batch = replace(empty, context_shares=shares[context][None], target_shares=shares[targets][None])
        inputs = (batch.context, batch.context_shares, batch.targets)
        predicted = functional_call(self._model, values, inputs)
        return prediction_loss(predicted, batch, self._spec.training, clients=1)[0]


def invert(replay: Replay, delta: Flat, start: Shares, iterations: int, rate: float = 0.3) -> tuple[Shares, float]:
    """Seeks the shares whose replay gives the update. start: the guess to begin with, (P,).

    Returns the shares of the iteration whose update was nearest, and the relative squared distance of that update.
    """
    observed = torch.from_numpy(delta)
    size = float((observed**2).sum())
    logits = torch.from_numpy(np.log(start + 1e-4).astype(np.float32)).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations, rate / 20)
    best, nearest = start, math.inf
    for _ in range(iterations):
        optimizer.zero_grad()
        loss = ((replay.delta(logits) - observed) ** 2).sum() / size
        if float(loss.detach()) < nearest:
            nearest, best = float(loss.detach()), normalized(replay, logits)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return best, nearest


def normalized(replay: Replay, logits: Tensor) -> Shares:
    """Returns the shares of these logits, (P,)."""
    question = replay.question
    exact = log_softmax_by_question(logits.detach()[None].double(), question, int(question.max()) + 1)
    return exact[0].exp().numpy()
