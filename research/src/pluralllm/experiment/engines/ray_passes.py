"""Trains the passes of a round as tasks of Ray, for a cohort that is too large for one core.

The spec cuts the passes, and the results come back in the order of the passes. So the bits are those of one process for any
number of workers, also if a worker dies and Ray trains its pass again. Ray's handles have no types, so they are Any here.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch

from pluralllm.common.predictor.data import GroupData
from pluralllm.common.words.ids import ClientId, RoundNumber
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment.engines.ray_workers import Outcome, Terms, answered, in_order, outcome_of, task_of
from pluralllm.experiment.passes import Clients, PassesHere, Trained
from pluralllm.experiment.stacked import Flat


@dataclass(frozen=True, slots=True)
class PassOrder:
    """One pass for a worker of the cluster."""

    spec_json: str
    number: RoundNumber
    groups: Mapping[ClientId, Any]  # for each client, Ray's reference to the data of its group
    terms: Terms


class Workplace:
    """Everything that a worker keeps from one pass of a federation to the next: the learners, and the groups that it has seen."""

    def __init__(self, spec_json: str) -> None:
        self.spec_json = spec_json
        self._here = PassesHere(RunSpec.model_validate_json(spec_json), torch.device("cpu"))
        self._groups: dict[str, GroupData] = {}  # by the reference

    def train(self, order: PassOrder, base: Flat) -> Trained:
        """Trains the pass of an order."""
        for reference in order.groups.values():
            if reference.hex() not in self._groups:
                self._groups[reference.hex()] = ray.get(reference)
        clients = {client: self._groups[reference.hex()] for client, reference in order.groups.items()}
        return next(self._here.train([clients], base, order.number))


_workplaces: list[Workplace] = []  # of this worker: at most one


def train_pass(order: PassOrder, base: Flat) -> Outcome[tuple[Trained, float]]:
    """Trains one pass in a worker of the cluster. Also returns the CPU seconds that it took."""

    def work() -> tuple[Trained, float]:
        start_s = time.process_time()
        if not _workplaces or _workplaces[0].spec_json != order.spec_json:
            _workplaces[:] = [Workplace(order.spec_json)]
        return _workplaces[0].train(order, base), time.process_time() - start_s

    return answered(order.terms, work)


class RayPasses:
    """Trains passes on the cluster that this process is connected to. Each group travels once to each machine.

    Only for clients without an optimizer state, because any worker trains any pass.
    """

    def __init__(self, spec: RunSpec, terms: Terms) -> None:
        assert not spec.training.keep_optimizer_state
        self._spec_json, self._terms = spec.model_dump_json(), terms
        self._task = task_of(train_pass)
        self._stored: dict[int, tuple[GroupData, Any]] = {}  # groups and their references, by identity of the group
        self.elsewhere_s = 0.0  # CPU seconds of the workers
        self.differences: set[str] = set()  # between the workers and the driver

    def train(self, passes: Sequence[Clients], base: Flat, number: RoundNumber) -> Iterator[Trained]:
        """Trains every pass, as `PassWorkers` says. Raises the first error of a worker, or WorkerDied."""
        stored_base = ray.put(base)

        def begin(clients: Clients) -> Any:
            groups = {client: self._reference(data) for client, data in clients.items()}
            return self._task.remote(PassOrder(self._spec_json, number, groups, self._terms), stored_base)

        with contextlib.closing(in_order(passes, begin)) as begun:
            for _, reference in begun:
                yield self._trained(reference)

    def _reference(self, data: GroupData) -> Any:
        if id(data) not in self._stored:
            self._stored[id(data)] = data, ray.put(data)
        return self._stored[id(data)][1]

    def _trained(self, reference: Any) -> Trained:
        outcome: Outcome[tuple[Trained, float]] = outcome_of(reference, "a pass")
        self.differences.update(outcome.differences)
        assert outcome.answer is not None
        trained, seconds = outcome.answer
        self.elsewhere_s += seconds
        return trained
