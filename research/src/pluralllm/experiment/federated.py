"""FedAvg in one process: the service's round machine and aggregation, with clients that train in batched passes."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pluralllm.client.work.train import rounding
from pluralllm.common.predictor.architecture import initial_values, layout_for, parameters
from pluralllm.common.predictor.data import GroupData
from pluralllm.common.weights.server_optimizer import first_moments, server_optimizer
from pluralllm.common.weights.update_format import as_read, update_format
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment.passes import PassesHere, PassWorkers, cut, training_questions
from pluralllm.experiment.ring_sums import RingSums
from pluralllm.experiment.stacked import Flat
from pluralllm.experiment.sums import SumsRounds, without_projection
from pluralllm.experiment.virtual import WaitingUpdates
from pluralllm.server.aggregation.aggregator import aggregator
from pluralllm.server.aggregation.arithmetic import shorten
from pluralllm.server.aggregation.rules import COLUMNS
from pluralllm.server.aggregation.update_files import norm_of
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.cohort import task_seed
from pluralllm.server.rounds.machine import step
from pluralllm.server.rounds.state import Phase, Run
from pluralllm.server.rounds.weighting import weights_of

VALUES_AT_ONCE = 16 * 1024 * 1024  # of the updates that wait in a file: 64 MiB
Updates = Mapping[ClientId, Flat]


@dataclass(frozen=True, slots=True)
class Point:
    """A model at one moment of its training, with its cost so far in rounds, gradient steps, episodes and bytes."""

    values: Flat  # in layout order
    rounds: int
    gradient_steps: int  # sequential steps: those of one client, or of the central model
    episodes: int  # of all clients together
    moved_bytes: int  # weights down and updates up, of all clients together
    longest_update: float = 0.0  # norm of the longest update so far, before any is shortened


def first_values(spec: RunSpec) -> Flat:
    """Returns the parameter values of model version 0 as one array, in layout order (sorted by parameter name).

    Shape: (V,), V parameter values of the predictor.
    """
    ordered = sorted(parameters(spec.predictor, spec.embedding.dimension), key=lambda p: p.name)
    return np.concatenate([initial_values(p, spec.seed).ravel() for p in ordered]).astype(np.float32)


def federate(
    spec: RunSpec,
    groups: dict[str, GroupData],
    device: torch.device,
    virtual: Mapping[ClientId, str] | None = None,
    passes: PassWorkers | None = None,
) -> Iterator[Point]:
    """Runs a federation to its end; yields model version 0, then the model version of each round.

    The arguments are those of `Federation`.
    """
    federation = Federation(spec, groups, device, virtual, passes)
    yield federation.point
    while not federation.is_over:
        federation.play_round()
        yield federation.point


@dataclass(frozen=True, slots=True)
class Standing:
    """A federation between two rounds, if its clients keep nothing from round to round."""

    run: Run
    point: Point
    moments: NDArray[np.float32]  # of the server optimizer


class Federation:
    """A federation in one process, which is played round by round. No client evaluates: the caller scores the models itself.

    The round machine gets the time 0 in every step. Time plays no role here, because every client answers at once.
    """

    def __init__(
        self,
        spec: RunSpec,
        groups: dict[str, GroupData],
        device: torch.device,
        virtual: Mapping[ClientId, str] | None = None,
        passes: PassWorkers | None = None,
    ) -> None:
        """Prepares the federation before its first round.

        virtual: the group of each virtual client; None: each training group of the spec is one client.
        passes: the workers that train the clients; None: this process.
        Raises PluginMissing or PluginBroken if the spec's aggregator is another package's and cannot be used.
        """
        aggregator(spec.aggregation)
        named = {ClientId(f"client-{number}"): name for number, name in enumerate(sorted(spec.groups.train))}
        trainers = {client: groups[name] for client, name in (named if virtual is None else virtual).items()}
        self._spec, self._everybody = spec, tuple(sorted(trainers))
        self._usable = training_questions(spec, trainers)
        values = first_values(spec)
        self._clients: Rounds
        if spec.sums is None:
            self._clients = LocalTraining(
                spec, trainers, values, device, updates_wait=virtual is not None, passes=passes
            )
        else:
            self._clients, values = SumsRounds(spec, trainers, device), without_projection(spec, values)
        policy = spec.round.model_copy(update={"evaluate_every": spec.rounds + 1})
        run = Run(RunId("experiment"), spec.seed, spec.rounds, policy, 0, Digest("0"), evaluated=ModelVersion(0))
        run = replace(run, aggregation=spec.aggregation, limits_members=spec.limits_members)
        self._run, _ = step(run, ev.RunStarted(0.0))
        self.point = Point(values, 0, 0, 0, 0)

    @property
    def is_over(self) -> bool:
        """Whether all rounds are played."""
        return self._run.phase is Phase.ENDED or self._run.round >= self._spec.rounds

    def play_round(self) -> None:
        """Trains a cohort and averages its updates; `point` is then the new model version."""
        spec, clients, base = self._spec, self._clients, self.point.values
        run, effects = step(self._run, ev.ClientsSeen(0.0, self._everybody, ()))
        cohort = next((effect.cohort for effect in effects if isinstance(effect, ev.OpenRound)), ())
        assert len(cohort) == spec.round.target_clients  # a client that was busy would be missing
        number = RoundNumber(run.round)
        deltas, distances = clients.train_round(base, number, cohort)
        longest = self.point.longest_update
        average: ev.Average | None = None
        for client in cohort:
            examples = len(self._usable[client])
            norm = norm_of(deltas[client])
            longest = max(longest, norm)
            receipt = ev.Receipt(client, Digest(f"{number}-{client}"), examples, distances[client], norm)
            run, effects = step(run, ev.UpdateArrived(0.0, number, run.version, receipt))
            average = next((effect for effect in effects if isinstance(effect, ev.Average)), average)
        assert average is not None  # every client of the cohort has delivered its update
        values = clients.next_version(base, average, deltas)
        self._run, _ = step(run, ev.ModelAveraged(0.0, number, Digest(f"version-{number}")))
        episodes = self.point.episodes + len(cohort) * clients.steps_of_round * spec.training.batch_episodes
        moved = self.point.moved_bytes + len(cohort) * clients.moved_bytes(number)
        self.point = Point(values, number, number * clients.steps_of_round, episodes, moved, longest)

    def standing(self) -> Standing:
        """Returns the present standing, from which an equal federation can go on. Only for clients that keep nothing."""
        return Standing(self._run, self.point, self._stateless().moments)

    def go_on_from(self, standing: Standing) -> None:
        """Continues an equal federation. standing: what that federation's `standing` returned."""
        self._stateless().moments = standing.moments
        self._run, self.point = standing.run, standing.point

    def _stateless(self) -> "LocalTraining":
        clients, spec = self._clients, self._spec
        keeps = spec.training.keep_optimizer_state or spec.updates.encoding != "fp32"
        assert isinstance(clients, LocalTraining), "sums keep a solver's state"
        assert not keeps, "the clients keep optimizer states or rounding errors"
        return clients


class Rounds(Protocol):
    """The work of the clients and of the coordinator in a round: training and averaging, or answering and solving."""

    steps_of_round: int  # of each client, one after the other

    def train_round(
        self, base: Flat, number: RoundNumber, cohort: Collection[ClientId] | None = None
    ) -> tuple[Updates, dict[ClientId, float | None]]:
        """Returns each client's update, and each client's distance between predicted and true answers, if it is measured.

        cohort: the clients of the round; None: all clients.
        """
        ...

    def next_version(self, base: Flat, average: ev.Average, deltas: Updates) -> Flat:
        """Returns the values of the next model version. average: what the round machine decided. deltas: the updates."""
        ...

    def moved_bytes(self, number: RoundNumber) -> int:
        """Returns how many bytes of model and update one client moves in a round."""
        ...


class LocalTraining:
    """Trains the clients of every round, in batched passes of several clients."""

    def __init__(
        self,
        spec: RunSpec,
        trainers: dict[ClientId, GroupData],
        values: Flat,
        device: torch.device,
        *,
        updates_wait: bool = False,
        passes: PassWorkers | None = None,
    ) -> None:
        """Prepares the clients and what they keep from round to round, with the first `values`.

        updates_wait: whether the updates of a round wait in a file, so that memory does not grow with the cohort.
        passes: the workers that train; None: this process.
        """
        self._spec, self._device, self.steps_of_round = spec, device, spec.training.local_steps
        self.moments = np.repeat(np.array(first_moments(spec.aggregation), np.float32)[:, None], values.size, axis=1)
        self._model_bytes = values.nbytes
        self._trainers, self._updates_wait = trainers, updates_wait
        self._sums = None if spec.private_rounds is None else RingSums(spec)
        form = update_format(layout_for(spec), spec.updates.encoding if self._sums is None else "ring32")
        self.update_bytes = form.size_bytes - len(form.header)  # size of one client's update
        self._residuals = {client: np.zeros_like(values) for client in trainers if spec.updates.encoding != "fp32"}
        self._passes = passes or PassesHere(spec, device)

    def moved_bytes(self, number: RoundNumber) -> int:  # noqa: ARG002 - the same in every round
        """Returns how many bytes of model and update one client moves in a round."""
        return self._model_bytes + self.update_bytes

    def next_version(self, base: Flat, average: ev.Average, deltas: Updates) -> Flat:
        """Returns the values of the next model version, and keeps the new moments of the server optimizer."""
        if self._sums is None:
            values, self.moments = aggregate(self._spec, base, self.moments, average, deltas)
            return values
        mean = self._sums.mean(average.round, average.receipts, deltas)
        values, self.moments = server_optimizer(self._spec.aggregation)(base, mean, self.moments)
        return values

    def train_round(
        self, base: Flat, number: RoundNumber, cohort: Collection[ClientId] | None = None
    ) -> tuple[Updates, dict[ClientId, float | None]]:
        """Trains the cohort, and returns each client's delta (values after training minus values before training).

        base: the parameter values that training starts from. Also returns, for each client, the distance between the answers
        that the base model predicts and the group's true answers.
        number: the round's number. cohort: the clients of the round; None: all clients.
        """
        deltas: WaitingUpdates | dict[ClientId, Flat] = WaitingUpdates(base.size) if self._updates_wait else {}
        distances: dict[ClientId, float | None] = {}
        clients = {client: self._trainers[client] for client in (self._trainers if cohort is None else cohort)}
        for trained in self._passes.train(cut(self._spec, self._device, clients), base, number):
            distances |= trained.distances
            for client, delta in trained.deltas.items():
                deltas[client] = self._travelled(client, delta, number)
        return deltas, distances

    def _travelled(self, client: ClientId, delta: Flat, number: RoundNumber) -> Flat:
        """Returns the delta as the coordinator would read it, after the update's encoding has rounded the values.

        The rounding error is kept and added to the client's next delta.
        """
        if client not in self._residuals:
            return delta
        exact = delta + self._residuals[client]
        read = as_read(exact, self._spec.updates.encoding, rounding(task_seed(self._spec.seed, number, client)))
        self._residuals[client] = exact - read
        return read


def aggregate(
    spec: RunSpec, base: Flat, moments: NDArray[np.float32], average: ev.Average, deltas: Updates
) -> tuple[Flat, NDArray[np.float32]]:
    """Returns the values of the next model version, and the new optimizer moments (the state of the server optimizer).

    base: values of the model that the round trained from. average: the receipts and weights that the round machine decided on.
    The service does the same computation slice by slice, as do updates that wait in a file; otherwise all values are one slice.
    """
    weights = np.array(weights_of(average.receipts, spec.aggregation, average.weights), dtype=np.float64)
    clients = [receipt.client for receipt in average.receipts]
    rule = aggregator(spec.aggregation)
    if not isinstance(deltas, WaitingUpdates):
        stacked: NDArray[np.float32] = np.stack([deltas[client] for client in clients])
        shorten(stacked, average.scales)
        return server_optimizer(spec.aggregation)(base, rule.whole(stacked, weights), moments)
    mean = np.empty(base.size)
    width = max(1, VALUES_AT_ONCE // len(clients) // COLUMNS) * COLUMNS
    for start in range(0, base.size, width):
        stop = min(start + width, base.size)
        stacked = np.stack([deltas.read(client, start, stop) for client in clients])
        shorten(stacked, average.scales)
        mean[start:stop] = rule.whole(stacked, weights)
    return server_optimizer(spec.aggregation)(base, mean, moments)
