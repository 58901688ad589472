"""Passes: the clients of a round that train side by side. The spec cuts a round into passes, and any worker trains a pass.

The clients of a pass share the stream of random numbers where the spec has dropout, so the cut is part of a round's bits. The cut
depends on the spec and the kind of device, and never on the number of workers. What a pass gives does not depend on where or when
it is trained.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from pluralllm.client.work.losses import base_distances
from pluralllm.client.work.train import draw_episodes, learning_rate, repeatable
from pluralllm.common.predictor.data import GroupData
from pluralllm.common.words.ids import ClientId, RoundNumber
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment.stacked import Flat, Learners
from pluralllm.server.rounds.cohort import task_seed

MOST_ON_A_GPU = 512  # clients of one pass: their values, gradients and moments are 12 GB with the largest preset
QUESTIONS_PER_PASS = 500  # on a CPU; measured by benchmarks/batched_round.py
Clients = Mapping[ClientId, GroupData]  # of one pass, sorted by client


@dataclass(frozen=True, slots=True)
class Trained:
    """The results of one pass, for each of its clients."""

    deltas: dict[ClientId, Flat]  # values after training minus values before training
    distances: dict[ClientId, float | None]  # between the base model's predictions and the true answers


class PassWorkers(Protocol):
    """Workers that train the passes of a round."""

    elsewhere_s: float  # CPU seconds that other processes have trained so far

    def train(self, passes: Sequence[Clients], base: Flat, number: RoundNumber) -> Iterator[Trained]:
        """Trains every pass, and yields the results in the order of the passes.

        base: the parameter values that training starts from. number: the round's number.
        """
        ...


class PassesHere:
    """Trains passes in this process, one after the other.

    Their optimizer state is kept from round to round if the spec says so. Without that state, passes of one size share their
    learners.
    """

    elsewhere_s = 0.0

    def __init__(self, spec: RunSpec, device: torch.device) -> None:
        self._spec, self._device = spec, device
        self._questions = TrainingQuestions(spec)
        # By number of the pass, if it has a state to keep, and number of its clients.
        self._learners: dict[tuple[int, int], Learners] = {}

    def train(self, passes: Sequence[Clients], base: Flat, number: RoundNumber) -> Iterator[Trained]:
        """Trains every pass, as `PassWorkers` says. Raises NotFinite if a value becomes infinite or NaN."""
        for place, clients in enumerate(passes):
            yield self._train(clients, self._learners_of(place, len(clients), base), base, number)

    def _learners_of(self, place: int, clients: int, base: Flat) -> Learners:
        """Returns the learners of a pass. Learners with a state serve the pass of the same number only."""
        key = place if self._spec.training.keep_optimizer_state else 0, clients
        if key not in self._learners:
            self._learners[key] = Learners(self._spec, [base] * clients, self._device)
        return self._learners[key]

    def _train(self, clients: Clients, learners: Learners, base: Flat, number: RoundNumber) -> Trained:
        spec, steps = self._spec, self._spec.training.local_steps
        learners.restart(base)
        # A client draws the same episodes as a real client of the service, because both use the same task seed.
        generators = {c: np.random.default_rng(task_seed(spec.seed, number, c)) for c in clients}
        first_step, distances = (number - 1) * steps, dict[ClientId, float | None]()
        with repeatable(task_seed(spec.seed, number, next(iter(clients))), self._device):
            for step_number in range(first_step, first_step + steps):
                episodes = [
                    episode
                    for client, data in clients.items()
                    for episode in draw_episodes(spec, data, self._questions.of(data), step_number, generators[client])
                ]
                learnt = learners.learn(episodes, learning_rate(spec, step_number))
                if step_number == first_step:
                    measured = base_distances(learnt.predicted, learnt.batch, len(clients))
                    distances = dict(zip(clients, measured, strict=True))
        moved = (values - base for values in learners.stack.flat())
        return Trained(dict(zip(clients, moved, strict=True)), distances)


class TrainingQuestions:
    """The numbers of the questions that groups train on. Groups with the same questions are split once, and share one tuple."""

    def __init__(self, spec: RunSpec) -> None:
        self._held_out = spec.held_out
        self._split: dict[int, tuple[GroupData, tuple[int, ...]]] = {}  # by identity of all questions

    def of(self, data: GroupData) -> tuple[int, ...]:
        """Returns the numbers of a group's questions to train on."""
        key = id(data.questions)
        if key not in self._split:  # the group is kept too, so that no other one gets its identity
            self._split[key] = data, data.split(self._held_out)[0]
        return self._split[key][1]


def training_questions(spec: RunSpec, trainers: Clients) -> dict[ClientId, tuple[int, ...]]:
    """Returns the numbers of the questions that each client trains on. Clients with the same questions share one tuple."""
    questions = TrainingQuestions(spec)
    return {client: questions.of(data) for client, data in trainers.items()}


def cut(spec: RunSpec, device: torch.device, clients: Clients) -> list[Clients]:
    """Returns the passes of a round: the clients in sorted order, so many in each pass as `clients_per_pass` says."""
    names, size = sorted(clients), clients_per_pass(spec, device, len(clients))
    return [{name: clients[name] for name in names[start : start + size]} for start in range(0, len(names), size)]


def clients_per_pass(spec: RunSpec, device: torch.device, clients: int) -> int:
    """Returns how many clients train in one pass: on a CPU as many as keep the activations in the cache.

    On a CPU one larger pass is slower than several small passes. On a GPU it is all clients, up to what its memory holds.
    """
    if device.type != "cpu":
        return min(max(1, clients), MOST_ON_A_GPU)
    episodes = spec.training.episodes
    ends = (episodes.min_context, episodes.max_context, episodes.min_targets, episodes.max_targets)
    questions = sum(ends) / 2 * spec.training.batch_episodes  # average number in one step of one client
    return max(1, int(QUESTIONS_PER_PASS / questions))
