"""Plays units on Ray: on the cores of this machine, or on a cluster whose workers need no shared disk and no embedding model.

A Ray without token authentication runs the code of everybody who reaches its ports: see docs/experiments.md.
Ray's handles have no types, so they are Any here.
"""

import asyncio
import contextlib
import socket
import time
import urllib.parse
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import structlog
import torch
from ray.exceptions import GetTimeoutError, RayActorError

from pluralllm.client.work.side_by_side import MAX_TRIES
from pluralllm.common.errors.tree import InvalidArgument, WorkerDied
from pluralllm.common.words.embedding import Embedding
from pluralllm.experiment.engines.ray_passes import RayPasses
from pluralllm.experiment.engines.ray_workers import Outcome, Terms, answered, outcome_of, task_of, versions_here
from pluralllm.experiment.engines.units import RayOptions, Results, Tell, Unit
from pluralllm.experiment.groups import Groups
from pluralllm.experiment.play import Player, Setting
from pluralllm.experiment.records import Provenance
from pluralllm.experiment.spec import Experiment, Method

log = structlog.get_logger()

POLL_S = 0.5
CONNECT_S = 5.0


class ProgressBoard:
    """Collects the progress of all units, in a process of its own. Units are known by their numbers."""

    def __init__(self) -> None:
        self._tries: dict[int, int] = {}
        self._newest: dict[int, tuple[str, int, int]] = {}

    def begin(self, number: int) -> None:
        """Counts that a worker began a unit."""
        self._tries[number] = self._tries.get(number, 0) + 1

    def report(self, number: int, stage: str, done: int, total: int) -> None:
        """Keeps the newest progress of a unit."""
        self._newest[number] = (stage, done, total)

    def take(self) -> tuple[dict[int, tuple[str, int, int]], dict[int, int]]:
        """Returns the progress since the last call, and how often each unit was begun."""
        newest, self._newest = self._newest, {}
        return newest, dict(self._tries)


@dataclass(frozen=True, slots=True)
class Order:
    """One unit for a worker of the cluster."""

    number: int
    experiment_json: str
    data_sha256: str
    method: str
    seed: int
    device: str
    terms: Terms
    is_spread: bool  # whether the passes of its rounds are tasks of the cluster


def play_unit(order: Order, groups: Groups, board: Any) -> Outcome[Results]:
    """Plays one unit in a worker of the cluster."""
    board.begin.remote(order.number)
    differences: set[str] = set()  # of the workers that trained passes

    def play() -> Results:
        experiment = Experiment.model_validate_json(order.experiment_json)
        method = next(method for method in experiment.methods if method.name == order.method)
        spec = experiment.run_spec(method, order.seed)
        passes = RayPasses(spec, order.terms) if order.is_spread else None
        provenance = Provenance(experiment, order.data_sha256)
        setting = Setting(experiment, {}, provenance, None, Path(), torch.device(order.device), passes)
        player = Player(setting, {spec.embedding: groups})
        records = player.play(method, order.seed, lambda *_: None, _reporter(board, order.number))
        if passes is not None:
            differences.update(passes.differences)
        return records

    outcome = answered(order.terms, play)
    return replace(outcome, differences=tuple(sorted({*outcome.differences, *differences})))


def _reporter(board: Any, number: int) -> Callable[[int, int], None]:
    """Returns the callback for gradient steps, which reports at most once in POLL_S seconds."""
    reported_s = 0.0

    def report(done: int, total: int) -> None:
        nonlocal reported_s
        if time.monotonic() - reported_s > POLL_S:
            reported_s = time.monotonic()
            board.report.remote(number, "training", done, total)

    return report


@dataclass(frozen=True, slots=True)
class RayCluster:
    """Engine that plays units as Ray tasks. Questions and vectors travel once to each machine."""

    options: RayOptions
    provenance: Provenance
    jobs: int  # units side by side where Ray runs on this machine alone
    groups_of: Callable[[Method], Groups]  # the embedded groups of a method

    async def map(self, units: Sequence[Unit], tell: Tell) -> AsyncGenerator[tuple[Unit, Results], None]:
        """Plays every unit, as `Engine` says. Raises InvalidArgument if there is no such cluster, or one of other versions.

        The passes of a unit with virtual clients fill the cluster, so such units are played one after the other.
        """
        with connected(self.options, self.jobs):
            board = ray.remote(num_cpus=0)(ProgressBoard).remote()
            stored: dict[Embedding, Any] = {}
            running: dict[Any, Unit] = {}
            tries: dict[int, int] = {}
            waiting = list(enumerate(units))
            try:
                while running or waiting:
                    for number, unit in tuple(waiting):
                        if not (self._is_spread(unit) and any(map(self._is_spread, running.values()))):
                            running[self._begun(number, unit, board, stored)] = unit
                            waiting.remove((number, unit))
                    await asyncio.sleep(POLL_S)  # no thread waits for Ray: it would hang when this engine is stopped
                    done, _ = ray.wait(list(running), num_returns=len(running), timeout=0)
                    tries = _follow(board, units, tries, tell)
                    for reference in done:
                        unit = running.pop(reference)
                        yield unit, _records(unit, reference)
            finally:
                for reference in running:
                    ray.cancel(reference, force=True)

    def _is_spread(self, unit: Unit) -> bool:
        """Whether the unit's passes are tasks: with virtual clients, on CPUs. A GPU trains large passes by itself."""
        has_virtual = self.provenance.experiment.data.virtual is not None
        return has_virtual and unit.method.kind == "fedavg" and not self.options.gpus_per_unit

    def _begun(self, number: int, unit: Unit, board: Any, stored: dict[Embedding, Any]) -> Any:
        """Begins a unit, and returns Ray's reference to its outcome. stored: the references to the groups so far."""
        experiment, is_spread = self.provenance.experiment, self._is_spread(unit)
        embedding = experiment.run_spec(unit.method, unit.seed).embedding
        if embedding not in stored:
            stored[embedding] = ray.put(self.groups_of(unit.method))
        order = Order(
            number=number,
            experiment_json=experiment.model_dump_json(),
            data_sha256=self.provenance.data_sha256,
            method=unit.method.name,
            seed=unit.seed,
            device="cuda" if self.options.gpus_per_unit else "cpu",
            terms=Terms(versions_here(), self.options.is_mixed),
            is_spread=is_spread,
        )
        cores = 0 if is_spread else 1  # while its passes are trained, a unit waits
        play = task_of(play_unit, cores=cores, gpus=self.options.gpus_per_unit)
        return play.remote(order, stored[embedding], board)


def _records(unit: Unit, reference: Any) -> Results:
    """Returns a unit's records. Where a worker differs from the driver, the headers say how."""
    outcome: Outcome[Results] = outcome_of(reference, str(unit))
    assert outcome.answer is not None
    if outcome.differences:
        for records in outcome.answer.values():
            records[0]["mixed"] = list(outcome.differences)
    return outcome.answer


def _follow(board: Any, units: Sequence[Unit], before: Mapping[int, int], tell: Tell) -> dict[int, int]:
    """Reports the progress of all units, and logs the units that were begun again. Returns how often each was begun."""
    try:
        newest, tries = ray.get(board.take.remote(), timeout=POLL_S)
    except (RayActorError, GetTimeoutError):  # its machine is busy or gone; the units do not need it
        return dict(before)
    for number, count in tries.items():
        if count > max(1, before.get(number, 1)):
            log.warning("unit.retried", unit=str(units[number]), tries=count - 1, at_most=MAX_TRIES, problem="it ended")
    for number, progress in newest.items():
        tell(units[number], *progress)
    result: dict[int, int] = tries
    return result


@contextlib.contextmanager
def connected(options: RayOptions, jobs: int) -> Iterator[None]:
    """Connects to the cluster, or starts a Ray of this machine that ends with the block.

    Raises InvalidArgument if the cluster does not answer, or if this machine has no GPU to share; WorkerDied if Ray does not
    start.
    """
    if options.address is not None and options.address != "auto":
        _check_reachable(options.address)
    here = {"num_cpus": jobs, "include_dashboard": False}
    try:
        _send_no_usage_reports()
        ray.init(address=options.address or "local", log_to_driver=False, **({} if options.address else here))
    except Exception as error:  # Ray raises Exception itself where a machine is too busy to start it
        ray.shutdown()
        if options.address is None:
            raise WorkerDied(problem=f"Ray does not start on this machine: {error}") from error
        raise InvalidArgument(field="--ray-address", problem=f"is {options.address!r}: {error}") from error
    try:
        there = ray.cluster_resources().get("GPU", 0)
        if options.address is None and there < options.gpus_per_unit:
            problem = f"is {options.gpus_per_unit}, and this machine has {there:g} GPUs"
            raise InvalidArgument(field="--gpus-per-unit", problem=problem)
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Checks that something listens at the address HOST:PORT or ray://HOST:PORT, as Ray itself waits for minutes.

    Raises InvalidArgument if nothing does.
    """
    try:
        parts = urllib.parse.urlsplit(address if "://" in address else f"//{address}")
        socket.create_connection((parts.hostname or "", parts.port or 0), CONNECT_S).close()
    except (OSError, ValueError) as error:
        problem = f"is {address!r}, where no Ray answers ({error}); write ray://HOST:10001, HOST:6379 or auto"
        raise InvalidArgument(field="--ray-address", problem=problem) from error


def _send_no_usage_reports() -> None:
    """Turns off the reports about its use that Ray sends over the network, unless this release of Ray hides the switch."""
    with contextlib.suppress(ImportError):
        from ray._common.usage.usage_lib import set_usage_stats_enabled_via_env_var  # noqa: PLC0415

        set_usage_stats_enabled_via_env_var(False)
