"""Training without a federation: all groups' data in one place, or each group by itself."""

import math
from collections.abc import Iterator

import numpy as np
import torch

from pluralllm.client.train import learning_rate
from pluralllm.common.data import GroupData, draw_episode, make_batch
from pluralllm.common.spec import RunSpec
from pluralllm.experiment.federated import Point, first_values
from pluralllm.experiment.stacked import Flat, StackedPredictors, mean_losses


def centralize(
    spec: RunSpec, steps: int, cosine: bool, every: int, groups: dict[str, GroupData], device: torch.device
) -> Iterator[Point]:
    """One model, `steps` gradient steps, each on a batch of one episode of every training group; a point each `every` steps.

    The paper's baseline is 100 steps with the rate falling to 0 as a cosine over them (arXiv 2503.09925). As many examples as
    the federation's: what the run spec holds out is held out here too.
    """
    mine = [groups[name] for name in sorted(spec.groups.train)]
    usable = [data.split(spec.evaluation.holdout_share)[0] for data in mine]
    rng = np.random.default_rng(spec.seed)
    torch.manual_seed(spec.seed)
    stack = StackedPredictors(spec, [first_values(spec)], device)
    optimizer = torch.optim.Adam(list(stack.values.values()), lr=spec.training.learning_rate)
    yield Point(stack.flat()[0], 0, 0, 0, 0)
    for number in range(steps):
        rate = spec.training.learning_rate
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * number / steps)) / 2 if cosine else rate
        pairs = [(data, draw_episode(own, spec.training.episodes, rng)) for data, own in zip(mine, usable, strict=True)]
        batch = make_batch(pairs).to(device)
        loss = mean_losses(stack, batch, spec, 1).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        done = number + 1
        if done % every == 0 or done == steps:
            yield Point(stack.flat()[0], 0, done, done * len(mine), 0)


def train_alone(
    spec: RunSpec, steps: int, every: int, groups: dict[str, GroupData], device: torch.device
) -> Iterator[tuple[Point, dict[str, Flat]]]:
    """A model for each training group, on its own episodes only; all in one batched pass."""
    names = sorted(spec.groups.train)
    mine = [groups[name] for name in names]
    usable = [data.split(spec.evaluation.holdout_share)[0] for data in mine]
    generators = [np.random.default_rng([spec.seed, number]) for number in range(len(mine))]
    torch.manual_seed(spec.seed)
    start = first_values(spec)
    stack = StackedPredictors(spec, [start] * len(mine), device)
    optimizer = torch.optim.Adam(list(stack.values.values()), lr=spec.training.learning_rate)
    yield Point(start, 0, 0, 0, 0), dict.fromkeys(names, start)
    for number in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate(spec.training, number)
        pairs = [
            (data, draw_episode(own, spec.training.episodes, rng))
            for data, own, rng in zip(mine, usable, generators, strict=True)
        ]
        batch = make_batch(pairs).to(device)
        loss = mean_losses(stack, batch, spec, len(mine)).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        done = number + 1
        if done % every == 0 or done == steps:
            yield Point(start, 0, done, done * len(mine), 0), dict(zip(names, stack.flat(), strict=True))
