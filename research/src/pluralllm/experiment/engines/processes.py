"""Plays units on worker processes of this machine. A worker that dies is replaced, and its unit is played again."""

import asyncio
import collections
import functools
import json
import sys
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

import structlog

from pluralllm.client.work.worker_process import WorkerProcess
from pluralllm.common.errors.tree import WorkerDied
from pluralllm.experiment.engines.units import MAX_TRIES, Results, Tell, Unit
from pluralllm.experiment.orders import FETCH, PLAY, Fetch, Play

log = structlog.get_logger()

WORKER_COMMAND = (sys.executable, "-m", "pluralllm.experiment.worker")


@dataclass(frozen=True, slots=True)
class Processes:
    """Engine that plays units on `jobs` processes of this machine."""

    order: Play  # of the experiment's units; method and seed are filled in
    jobs: int  # processes side by side
    command: tuple[str, ...] = WORKER_COMMAND

    async def map(self, units: Sequence[Unit], tell: Tell) -> AsyncGenerator[tuple[Unit, Results], None]:
        """Plays every unit, as `Engine` says. Each process takes the next unit until none is left."""
        waiting = collections.deque(units)
        idle = [WorkerProcess(self.command) for _ in range(min(self.jobs, len(units)))]
        workers = tuple(idle)
        running: set[asyncio.Task[tuple[Unit, Results]]] = set()
        try:
            while waiting or running:
                while waiting and idle:
                    running.add(asyncio.create_task(self._play(waiting.popleft(), idle.pop(), idle, tell)))
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=lambda task: task.exception() is not None):  # no finished unit is lost
                    yield task.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await asyncio.gather(*(worker.stop() for worker in workers))

    async def _play(
        self, unit: Unit, worker: WorkerProcess, idle: list[WorkerProcess], tell: Tell
    ) -> tuple[Unit, Results]:
        """Plays one unit, and again if the worker's process ends. The worker is idle afterwards.

        Raises WorkerDied after MAX_TRIES deaths.
        """
        for tries in range(1, MAX_TRIES + 1):
            try:
                results = await self._records(unit, worker, tell)
            except WorkerDied as error:
                if worker.pid is not None:  # the process lives and says what is wrong: it would say the same again
                    raise
                if tries == MAX_TRIES:
                    problem = f"{error.problem}, {tries} times in {unit}; if memory ran out, give fewer --jobs"
                    raise WorkerDied(problem=problem) from error
                log.warning("unit.retried", unit=str(unit), tries=tries, at_most=MAX_TRIES, problem=error.problem)
            else:
                idle.append(worker)
                return unit, results
        raise AssertionError("the last try returns or raises")

    async def _records(self, unit: Unit, worker: WorkerProcess, tell: Tell) -> Results:
        order = replace(self.order, method=unit.method.name, seed=unit.seed)
        played = await worker.ask(PLAY, order, functools.partial(tell, unit))
        pieces = [await worker.ask(FETCH, Fetch(piece), lambda *_: None) for piece in range(played.pieces)]
        try:
            results: Results = json.loads("".join(piece.text for piece in pieces))
        except ValueError as error:
            raise WorkerDied(problem=f"its result of {unit} is not JSON") from error
        return results
