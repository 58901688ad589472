"""Plays units on Ray: on the cores of this machine, or on a cluster whose workers need no shared disk and no embedding model.

A Ray without token authentication runs the code of everybody who reaches its ports: see docs/experiments.md.
Ray's handles have no types, so they are Any here.
"""

import asyncio
import contextlib
import importlib.metadata
import os
import platform
import socket
import time
import urllib.parse
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import structlog
import torch
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from pluralllm.client.work.side_by_side import MAX_TRIES
from pluralllm.common.errors.tree import InvalidArgument, PluralError, WorkerDied, leaves
from pluralllm.common.words.spec import Embedding
from pluralllm.experiment.engines.units import RayOptions, Results, Tell, Unit
from pluralllm.experiment.groups import Groups
from pluralllm.experiment.play import Player, Setting
from pluralllm.experiment.records import Provenance
from pluralllm.experiment.spec import Experiment, Method

log = structlog.get_logger()

# A unit's figures may depend on these packages; Ray itself demands one version of Python.
PACKAGES = ("pluralllm-common", "pluralllm-client", "pluralllm-server", "pluralllm-research", "torch", "numpy")
POLL_S = 0.5
CONNECT_S = 5.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """A worker's answer for a unit: the records or an error, and how the worker differs from the driver."""

    records: Results = field(default_factory=dict)
    differences: tuple[str, ...] = ()
    error: tuple[str, dict[str, Any]] | None = None  # reason and facts of an error of our tree


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
    versions: Mapping[str, str]  # of the driver
    is_mixed: bool  # whether a worker with other versions may play


def versions_here() -> dict[str, str]:
    """Returns whatever of this process may change a unit's figures: versions of packages, and the kind of processor."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return packages | {"processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"}


def differences_of(there: Mapping[str, str], here: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the differences between a worker and the driver, each as "torch 2.9, here 2.13"."""
    return tuple(f"{name} {there[name]}, here {here[name]}" for name in here if there[name] != here[name])


def play_unit(order: Order, groups: Groups, board: Any) -> Outcome:
    """Plays one unit in a worker of the cluster. An error of our tree is returned, as Ray cannot carry its fields."""
    board.begin.remote(order.number)
    differences = differences_of(versions_here(), order.versions)
    if differences and not order.is_mixed:
        problem = (
            f"names a cluster with a worker that has {'; '.join(differences)}. The figures may differ: install the same "
            f"versions there, or give --mixed"
        )
        error = InvalidArgument(field="--ray-address", problem=problem)
        return Outcome(differences=differences, error=(error.reason, error.facts))
    torch.set_num_threads(1)
    os.putenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    experiment = Experiment.model_validate_json(order.experiment_json)
    method = next(method for method in experiment.methods if method.name == order.method)
    provenance = Provenance(experiment, order.data_sha256)
    setting = Setting(experiment, {}, provenance, None, Path(), torch.device(order.device))
    embedding = experiment.run_spec(method, order.seed).embedding
    try:
        player = Player(setting, {embedding: groups})
        records = player.play(method, order.seed, lambda *_: None, _reporter(board, order.number))
    except PluralError as error:
        return Outcome(differences=differences, error=(error.reason, error.facts))
    return Outcome(records, differences)


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
        """Plays every unit, as `Engine` says. Raises InvalidArgument if there is no such cluster, or one of other versions."""
        with connected(self.options, self.jobs):
            board = ray.remote(num_cpus=0)(ProgressBoard).remote()
            running = self._submit(units, board)
            tries: dict[int, int] = {}
            try:
                while running:
                    await asyncio.sleep(POLL_S)  # no thread waits for Ray: it would hang when this engine is stopped
                    done, _ = ray.wait(list(running), num_returns=len(running), timeout=0)
                    tries = _follow(board, units, tries, tell)
                    for reference in done:
                        unit = running.pop(reference)
                        yield unit, self._records(unit, reference)
            finally:
                for reference in running:
                    ray.cancel(reference, force=True)

    def _submit(self, units: Sequence[Unit], board: Any) -> dict[Any, Unit]:
        play = ray.remote(num_cpus=1, num_gpus=self.options.gpus_per_unit, max_retries=MAX_TRIES - 1)(play_unit)
        experiment, here = self.provenance.experiment, versions_here()
        stored: dict[Embedding, Any] = {}
        running: dict[Any, Unit] = {}
        for number, unit in enumerate(units):
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
                versions=here,
                is_mixed=self.options.is_mixed,
            )
            running[play.remote(order, stored[embedding], board)] = unit
        return running

    def _records(self, unit: Unit, reference: Any) -> Results:
        """Returns a unit's records. Where the worker differs from the driver, the headers say how."""
        try:
            outcome: Outcome = ray.get(reference)
        except RayTaskError as error:
            raise WorkerDied(problem=f"{type(error.cause).__name__} in {unit}: {error.cause}") from error
        except RayError as error:
            raise WorkerDied(problem=f"{type(error).__name__}, {MAX_TRIES} times in {unit}") from error
        if outcome.error is not None:
            reason, facts = outcome.error
            raise leaves()[reason](**facts)
        if outcome.differences:
            for records in outcome.records.values():
                records[0]["mixed"] = list(outcome.differences)
        return outcome.records


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
