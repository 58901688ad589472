"""Plays units on worker processes of this machine. A worker that dies is replaced, and its unit is played again."""

import asyncio
import contextlib
import functools
import json
import sys
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from pluralllm.client.work.side_by_side import side_by_side
from pluralllm.client.work.worker_process import WorkerProcess
from pluralllm.common.errors.tree import WorkerDied
from pluralllm.experiment.engines.units import Results, Tell, Unit
from pluralllm.experiment.orders import FETCH, PLAY, Fetch, Play

WORKER_COMMAND = (sys.executable, "-m", "pluralllm.experiment.worker")


@dataclass(frozen=True, slots=True)
class Processes:
    """Engine that plays units on `jobs` processes of this machine."""

    order: Play  # of the experiment's units; method and seed are filled in
    jobs: int  # processes side by side
    command: tuple[str, ...] = WORKER_COMMAND

    async def map(self, units: Sequence[Unit], tell: Tell) -> AsyncGenerator[tuple[Unit, Results], None]:
        """Plays every unit, as `Engine` says. Each process takes the next unit until none is left."""
        workers = tuple(WorkerProcess(self.command) for _ in range(min(self.jobs, len(units))))

        async def play(unit: Unit, worker: WorkerProcess) -> Results:
            return await self._records(unit, worker, tell)

        try:
            async with contextlib.aclosing(side_by_side(units, workers, play, "--jobs")) as played:
                async for unit, results in played:
                    yield unit, results
        finally:
            await asyncio.gather(*(worker.stop() for worker in workers))

    async def _records(self, unit: Unit, worker: WorkerProcess, tell: Tell) -> Results:
        order = replace(self.order, method=unit.method.name, seed=unit.seed)
        played = await worker.ask(PLAY, order, functools.partial(tell, unit))
        pieces = [await worker.ask(FETCH, Fetch(piece), lambda *_: None) for piece in range(played.pieces)]
        try:
            results: Results = json.loads("".join(piece.text for piece in pieces))
        except ValueError as error:
            raise WorkerDied(problem=f"its result of {unit} is not JSON") from error
        return results
