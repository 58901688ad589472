"""Training without a federation: all groups' data in one place, each group by itself, or a group's last steps on its own."""

from collections.abc import Iterator

import numpy as np
import torch

from pluralllm.client.work.train import draw_episodes, learning_rate
from pluralllm.common.predictor.data import GroupData
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment.federated import Point, first_values
from pluralllm.experiment.stacked import Flat, Learners


def centralize(
    spec: RunSpec, steps: int, every: int, groups: dict[str, GroupData], device: torch.device
) -> Iterator[Point]:
    """One model, `steps` gradient steps, each on the episodes that every training group's client would take.

    A point each `every` steps. The paper's baseline is 100 steps with the rate falling to 0 over them (arXiv 2503.09925). As
    many examples as the federation's: what the run spec holds out is held out here too.
    """
    mine = [groups[name] for name in sorted(spec.groups.train)]
    usable = [data.split(spec.evaluation.holdout_share)[0] for data in mine]
    rng = episode_stream(spec, 0)
    torch.manual_seed(spec.seed)
    start = first_values(spec)
    learners = Learners(spec, [start], device)
    yield Point(start, 0, 0, 0, 0)
    for number in range(steps):
        pairs = [
            episode
            for data, own in zip(mine, usable, strict=True)
            for episode in draw_episodes(spec, data, own, number, rng)
        ]
        learners.learn(pairs, learning_rate(spec, number))
        done = number + 1
        if done % every == 0 or done == steps:
            yield Point(learners.stack.flat()[0], 0, done, done * len(pairs), 0)


def episode_stream(spec: RunSpec, number: int) -> np.random.Generator:
    """Apart from every stream of sizes, which are seeded with the run's seed and the step (`common.data.step_sizes`)."""
    return np.random.default_rng([spec.seed, number, 1])


def train_alone(
    spec: RunSpec, start: Flat, steps: int, every: int, groups: dict[str, GroupData], device: torch.device
) -> Iterator[tuple[Point, dict[str, Flat]]]:
    """A model for each training group, from `start`, on its own episodes only; all in one batched pass."""
    names = sorted(spec.groups.train)
    usable = [groups[name].split(spec.evaluation.holdout_share)[0] for name in names]
    generators = [episode_stream(spec, number) for number in range(len(names))]
    torch.manual_seed(spec.seed)
    learners = Learners(spec, [start] * len(names), device)
    yield Point(start, 0, 0, 0, 0), dict.fromkeys(names, start)
    for number in range(steps):
        pairs = [
            episode
            for name, own, rng in zip(names, usable, generators, strict=True)
            for episode in draw_episodes(spec, groups[name], own, number, rng)
        ]
        learners.learn(pairs, learning_rate(spec, number))
        done = number + 1
        if done % every == 0 or done == steps:
            yield Point(start, 0, done, done * len(pairs), 0), dict(zip(names, learners.stack.flat(), strict=True))
