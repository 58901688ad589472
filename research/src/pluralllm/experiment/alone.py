"""Training without a federation: one model on all groups' data, or one model for each group on the group's own data.

After a federation has ended, a method may also adapt the federated model to each group on the group's own data.
"""

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
    """Trains one model on the data of all training groups; each gradient step uses every group's episodes.

    steps: number of gradient steps. every: number of gradient steps between two yielded points. A point holds the model and
    its cost so far. The paper's baseline has 100 steps, over which the learning rate falls to 0 (arXiv 2503.09925). Questions
    that the run spec holds out are not used.
    """
    training_groups = [groups[name] for name in sorted(spec.groups.train)]
    usable = [data.split(spec.held_out)[0] for data in training_groups]
    rng = episode_stream(spec, 0)
    torch.manual_seed(spec.seed)
    start = first_values(spec)
    learners = Learners(spec, [start], device)
    yield Point(start, 0, 0, 0, 0)
    for number in range(steps):
        pairs = [
            episode
            for data, own in zip(training_groups, usable, strict=True)
            for episode in draw_episodes(spec, data, own, number, rng)
        ]
        learners.learn(pairs, learning_rate(spec, number))
        done = number + 1
        if done % every == 0 or done == steps:
            yield Point(learners.stack.flat()[0], 0, done, done * len(pairs), 0)


def episode_stream(spec: RunSpec, number: int) -> np.random.Generator:
    """Returns the random generator that draws the training episodes of one predictor.

    number: the predictor's number. The generator's seed consists of three numbers. The generators of episode sizes
    (`step_sizes` in common/predictor/data.py) have seeds of two numbers, the run's seed and the step. So no generator repeats
    the numbers of another generator.
    """
    return np.random.default_rng([spec.seed, number, 1])


def train_alone(
    spec: RunSpec, start: Flat, steps: int, every: int, groups: dict[str, GroupData], device: torch.device
) -> Iterator[tuple[Point, dict[str, Flat]]]:
    """Trains one model for each training group on the group's own episodes only.

    start: parameter values that every model begins with. steps: number of gradient steps. All models are trained in one
    batched pass. every: number of gradient steps between two results; each result is the cost so far and each group's model
    values.
    """
    names = sorted(spec.groups.train)
    usable = [groups[name].split(spec.held_out)[0] for name in names]
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
