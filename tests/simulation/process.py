"""One life of the coordinator: all that a kill -9 takes with it, and what keeps the dead from acting."""

import asyncio
import contextlib
import zlib
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor, Future
from contextvars import Context, ContextVar, copy_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

from simulation.calls import Service
from simulation.faults import Faults
from simulation.virtual_time import SimulatedClock
from support.memory_blobs import MemoryBlobs
from support.memory_store import MemoryMembership, MemoryStore

from pluralllm.server.aggregation import update_files as updates
from pluralllm.server.members.audit_log import AuditLog
from pluralllm.server.members.door import Door, by_word
from pluralllm.server.process.fail_stop import FailStop
from pluralllm.server.rpc.federation import Federation
from pluralllm.server.runs.coordinator import Coordinator, Timing
from pluralllm.server.runs.intake import Intake
from pluralllm.server.runs.reward_queue import RewardDesk
from pluralllm.server.runs.uploads import Uploads

LEASE_S = 20.0
TIMING = Timing(lease_s=LEASE_S, silence_s=5.0, tick_s=2.5, keep_updates=3)
POLL_HOLD_S = 20.0
CALLS_AT_A_TIME = 1000
MAX_TURNS_TO_DIE = 200
# What a coordinator does unasked: if it ends by itself, nothing does it any more.
BACKGROUND = frozenset({"Coordinator._drive", "Coordinator._average_until_done", "Coordinator._collect", "Intake.tend"})

_process: ContextVar["Process | None"] = ContextVar("process", default=None)


class Folders:
    """What a coordinator keeps as files."""

    def __init__(self, folder: Path) -> None:
        self.blobs, self.scratch, self.uploads = (folder / name for name in ("blobs", "scratch", "uploads"))
        for each in (self.blobs, self.scratch, self.uploads):
            each.mkdir()


class Process:
    """Everything in it is new; store and blobs are the ones that others had before."""

    def __init__(
        self,
        store: MemoryStore,
        membership: MemoryMembership,
        blobs: MemoryBlobs,
        folders: Folders,
        clock: SimulatedClock,
    ) -> None:
        self.clock = clock
        self.dead = False
        self.gone = asyncio.Event()
        self.fail_stop = FailStop()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.broken: list[str] = []
        self._context = copy_context()
        self._context.run(_process.set, self)
        self._membership = membership
        self.coordinator = Coordinator(store, blobs, folders.scratch, clock, TIMING, self.fail_stop)
        self._scratch = folders.scratch
        self._intake = Intake(self.coordinator, Uploads(folders.uploads))
        self._service: Service | None = None

    def spawn(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """A task that is part of the process; each in a context of its own."""
        return asyncio.get_running_loop().create_task(work, context=self._context.copy())

    async def start(self) -> None:
        """As __main__ does it. Raises what the store fails with."""
        audit_log = AuditLog(self._membership, self.clock.now_s)
        await audit_log.start()
        await self.coordinator.start()
        self.spawn(self._intake.tend())
        self.spawn(self._fail_stop())
        desk = RewardDesk(self.coordinator, self._scratch, POLL_HOLD_S)
        federation = Federation(self.coordinator, self._intake, desk, POLL_HOLD_S, chunk_idle_s=30.0)
        self._service = await Service.of(federation, Door(by_word, audit_log, CALLS_AT_A_TIME), self.fail_stop)

    async def _fail_stop(self) -> None:
        await self.fail_stop.stopped()
        self.kill()

    def answer(self, client: str, method: str, requests: list[bytes]) -> "asyncio.Task[list[bytes]] | None":
        """A call under way; None while nobody listens."""
        if self.dead or self._service is None:
            return None
        work = self.spawn(self._service.answer(client, method, requests))
        work.add_done_callback(_forget)  # its caller may be gone by then
        return work

    def ended(self, task: "asyncio.Task[Any]") -> None:
        """One of its tasks has; of those that nobody waits for, how is remembered."""
        self.tasks.discard(task)
        name = getattr(task.get_coro(), "__qualname__", "")
        if name in BACKGROUND and not self.dead and not task.cancelled() and (error := task.exception()) is not None:
            self.broken.append(f"{name} ended with {error!r}")

    def describe(self) -> str:
        runs = (f"{run.state.phase} in round {run.state.round} {run.trouble}" for run in self.coordinator.runs())
        return "; ".join((*runs, *self.broken))

    def kill(self) -> None:
        """Nothing of it does anything any more."""
        self.dead = True
        for task in tuple(self.tasks):
            task.cancel()
        self.gone.set()

    async def buried(self) -> None:
        """When the last of its tasks is gone."""
        for _ in range(MAX_TURNS_TO_DIE):
            if not self.tasks:
                return
            for task in tuple(self.tasks):
                task.cancel()
            await asyncio.sleep(0)
        raise AssertionError(f"these would not die: {self.tasks}")


class Operations:
    """The hooks of store and blobs, and the runner of blocking work: each operation is one the faults may strike."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self.seen: set[str] = set()

    async def before(self, operation: str, about: object) -> None:
        if (process := _process.get()) is not None:
            _check_alive(process)
            self.seen.add(operation)
            await self._faults.before(operation, about)
            _check_alive(process)

    async def after(self, operation: str, about: object) -> None:
        if (process := _process.get()) is not None:
            await self._faults.after(operation, about)
            _check_alive(process)

    async def in_line(self, function: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        """Instead of asyncio.to_thread: no thread, but others may act before it begins."""
        name = function.__qualname__.removesuffix(".<locals>.<lambda>").rpartition(".")[2].lstrip("_")
        about = args[0] if args else None
        path = getattr(about, "path", about)
        key = f"{self._faults.round} {name} {path.name if isinstance(path, Path) else ''}"
        for _ in range(zlib.crc32(key.encode()) % 3):
            await asyncio.sleep(0)
        await self.before(f"disk.{name}", about)
        found = function(*args, **named)
        await self.after(f"disk.{name}", about)
        return found


class InLine(Executor):
    """A pool without threads: what is submitted is done at once."""

    def __init__(self, threads: int) -> None:
        pass

    def submit(self, work: Callable[..., Any], /, *args: Any, **named: Any) -> "Future[Any]":
        found: Future[Any] = Future()
        try:
            found.set_result(work(*args, **named))
        except BaseException as error:  # noqa: BLE001 -- as a thread's future holds whatever ends its work
            found.set_exception(error)
        return found


def _check_alive(process: Process) -> None:
    if process.dead:
        raise asyncio.CancelledError


@contextlib.contextmanager
def without_threads(operations: Operations) -> Iterator[None]:
    """Blocking work of the coordinator runs in line, and a process's tasks are known."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(_task)
    with patch.object(asyncio, "to_thread", operations.in_line), patch.object(updates, "ThreadPoolExecutor", InLine):
        yield
    loop.set_task_factory(None)


def _forget(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled():
        task.exception()


def _task(
    loop: asyncio.AbstractEventLoop, work: Any, context: Context | None = None, **named: Any
) -> "asyncio.Task[Any]":
    found = asyncio.Task(work, loop=loop, context=context, **named)
    process = _process.get() if context is None else context.get(_process)
    if process is not None:
        process.tasks.add(found)
        found.add_done_callback(process.ended)
        if process.dead:
            found.cancel()
    return found
