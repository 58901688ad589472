"""A whole federation in one process: a coordinator that is killed and restarted, clients, a network, a disk and a clock."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulation.client import SimulatedClient
from simulation.faults import Armed, Faults, Kind
from simulation.network import Network
from simulation.process import Folders, Operations, Process
from simulation.scenario import RUN, Scenario
from simulation.trace import Trace
from simulation.virtual_time import SimulatedClock, SimulatedLoop
from support.memory_blobs import MemoryBlobs, flip_bit
from support.memory_store import MemoryMembership, MemoryStore, Tables

from pluralllm.common.words.ids import ClientId, Digest, RoundNumber
from pluralllm.server.commands.verify import Report, verify_state
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs.recovery import recover

EPOCH_S = 1_700_000_000.0
START_EVERY = 100_000  # at most so many starts of the coordinator
LOG_SHOWN = 10
LOOK_EVERY_S = 1.0  # the interval of checks whether the run is over
FAREWELL_S = 120.0  # time for the clients to learn that the run is over
CLOCK_SHIFTS_S = (-86_400.0, 86_400.0, -315_360_000.0, 315_360_000.0, -3.0, 3.0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a simulated run."""

    record_sha256: str  # the hash of the newest version; it covers the whole history
    digest: str
    versions: int
    rounds: int
    ended: str
    fired: Counter[Kind]
    quiet: Sequence[int]  # rounds in which no fault struck
    lives: int  # the number of the coordinator's processes
    simulated_s: float
    trace_sha256: str
    report: Report
    broken_promises: Sequence[str]
    broken_tasks: Sequence[str]  # background tasks that ended while the coordinator lived
    operations: frozenset[str]
    log: Sequence[str]  # one line for each fault


class World:
    """One run, from its creation to its verification."""

    def __init__(self, scenario: Scenario, seed: int, kinds: Sequence[Kind], loop: SimulatedLoop, folder: Path) -> None:
        self._scenario, self._seed, self._loop = scenario, seed, loop
        self.faults = Faults(seed, kinds, scenario.clients, self)
        self.trace = Trace(loop.time)
        self.operations = Operations(self.faults)
        self._tables, self._folders = Tables(), Folders(folder)
        hooks = (self.operations.before, self.operations.after)
        self._store, self._membership = MemoryStore(self._tables, *hooks), MemoryMembership(self._tables, *hooks)
        self._blobs = MemoryBlobs(self._folders.blobs, *hooks)
        self._process: Process | None = None
        self._shift_s = EPOCH_S  # the difference between the loop's time and the coordinator's clock
        self._over = asyncio.Event()
        self._lives = 0
        self._broken: list[str] = []
        network = Network(self.faults, self.trace, lambda: self._process)
        self._clients = [
            SimulatedClient(name, scenario.spec, network, self.faults, seed, 50 + index)
            for index, name in enumerate(scenario.clients)
        ]

    # The actions of the faults: see faults.Struck

    def time(self) -> float:
        return self._loop.time()

    def stop_coordinator(self, fault: Armed) -> None:
        """Kills the process; the next process meets the effects of a power loss or of a clock that was set."""
        assert self._process is not None
        self._process.kill()
        if fault.kind is Kind.POWER_LOST:
            self._lose_power(random.Random(fault.number))
        if fault.kind is Kind.CLOCK_SET:
            self._shift_s += CLOCK_SHIFTS_S[fault.number % len(CLOCK_SHIFTS_S)]

    def sleep_machine(self, length_s: float) -> None:
        self._loop.jump(length_s)

    def stop_coordinator_in(self, wait_s: float) -> None:
        assert self._process is not None
        self._loop.call_later(wait_s, self._process.kill)

    def flip_bit(self, digest: Digest, bit: int) -> None:
        self._blobs.flip_bit(digest, bit)

    def newest_model(self) -> Digest:
        return self._tables.runs[RUN].versions.all()[-1].digest

    def _lose_power(self, draw: random.Random) -> None:
        """Leaves each file that was never synced whole, empty, damaged or deleted."""
        self._blobs.lose_power([digest for digest in self._blobs.deleted if draw.random() < 0.5])
        for path in (*sorted(self._folders.uploads.iterdir()), *sorted(self._folders.scratch.iterdir())):
            match draw.randrange(4):
                case 0:
                    path.unlink()
                case 1:
                    path.write_bytes(bytes(path.stat().st_size))
                case 2 if path.stat().st_size:
                    flip_bit(path, draw.getrandbits(20))
                case _:
                    pass

    # The life of the federation

    async def live(self, limit_s: float) -> None:
        """Runs until the run is over and every client knows it. Raises Standstill or the error of a task."""
        supervising = asyncio.create_task(self._supervise())
        living = [asyncio.create_task(client.run()) for client in self._clients]
        ending = asyncio.create_task(self._over.wait())
        given_up = self._loop.given_up(limit_s)
        try:
            await _first_end([ending, given_up, supervising, *living])
            await asyncio.wait(living, timeout=FAREWELL_S)
        finally:
            for task in (supervising, *living):
                task.cancel()
            results = await asyncio.gather(supervising, *living, return_exceptions=True)
            if self._process is not None:
                await self._bury(self._process)
        for failed in results:
            if isinstance(failed, Exception):
                raise failed
        self.faults.end_round()
        self.faults.restore()

    async def _supervise(self) -> None:
        draw = random.Random(f"{self._seed}/supervisor")
        for _ in range(START_EVERY):
            self._lives += 1
            clock = self._loop.clock = SimulatedClock(self._shift_s + self._loop.time())
            self._process = process = Process(self._store, self._membership, self._blobs, self._folders, clock)
            starting = process.spawn(self._start(process))
            await asyncio.wait([starting])
            if not process.dead and starting.exception() is None:
                await process.gone.wait()
            await self._bury(process)
            self.trace.note("coordinator", "gone")
            await asyncio.sleep(draw.uniform(0.05, 3.0))
        raise AssertionError(f"the coordinator was started {START_EVERY} times")

    async def _bury(self, process: Process) -> None:
        process.kill()
        await process.buried()
        self._broken += process.broken
        self._process = None

    async def _start(self, process: Process) -> None:
        """Starts the process; creates and starts the run as an operator would. The store's errors end the process."""
        await process.start()
        run = await process.parts.coordinator.create_run(RUN, self._scenario.spec.canonical_json())
        if run.state.phase is Phase.CREATED:
            await process.parts.coordinator.dispatch(run, ev.RunStarted(process.clock.now_s()))
        process.spawn(self._watch(process))

    async def _watch(self, process: Process) -> None:
        run = process.parts.runs.get(RUN)
        while not run.is_over:  # noqa: ASYNC110 -- the coordinator has no event for it
            await asyncio.sleep(LOOK_EVERY_S)
        self._over.set()

    def describe(self) -> str:
        """Describes the current state, to find out why the run goes no further."""
        process = self._process
        state = "no coordinator" if process is None else process.describe()
        return "\n".join((f"after {self._loop.time():.1f} s: {state}", *self.faults.log[-LOG_SHOWN:]))

    # The end

    async def outcome(self) -> Outcome:
        """Audits the stores and compares the clients' receipts with the records."""
        tables = self._tables.runs[RUN]
        report = await verify_state(self._store, self._membership, self._blobs, self._folders.scratch)
        run = await recover(self._store, tables.record)
        for sequence, row in tables.events.after(0, 10**9):
            self.trace.note("log", f"{sequence} {row}")
        return Outcome(
            record_sha256=run.newest.record_sha256,
            digest=run.newest.digest,
            versions=run.state.version,
            rounds=run.state.round,
            ended=f"{run.state.outcome}: {run.state.reason}",
            fired=self.faults.fired,
            quiet=self.faults.quiet,
            lives=self._lives,
            simulated_s=self._loop.time(),
            trace_sha256=self.trace.sha256(),
            report=report,
            broken_promises=[*self._broken_promises()],
            broken_tasks=self._broken,
            operations=frozenset(self.operations.seen),
            log=self.faults.log,
        )

    def _broken_promises(self) -> Iterator[str]:
        """Yields receipts that are not on record, or that do not count in the version of their round."""
        tables = self._tables.runs[RUN]
        made = {version.round: version for version in tables.versions.all()}
        for client in self._clients:
            if client.knows_the_run and not client.knows_that_it_is_over:
                yield f"{client.name} was not told that the run is over"
            for number, digest in client.receipts.items():
                kept = tables.receipts.get(number, {}).get(ClientId(client.name))
                counted = {update[:2] for update in made[RoundNumber(number)].updates} if number in made else None
                if kept is None or kept.receipt.digest != digest:
                    yield f"round {number}: the receipt of {client.name} is not on record"
                if counted is not None and (client.name, digest) not in counted:
                    yield f"round {number}: the update of {client.name} does not count"


async def _first_end(tasks: Sequence["asyncio.Future[Any]"]) -> None:
    """Waits until the first task ends. Raises its error."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
