"""One life of the coordinator: all state that kill -9 destroys, and the checks that a killed process does nothing more."""

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
from pluralllm.server.composition import federation_of
from pluralllm.server.members.audit_log import AuditLog
from pluralllm.server.members.door import MainDoor, by_word
from pluralllm.server.members.roster_log import RosterLog
from pluralllm.server.process.fail_stop import FailStop
from pluralllm.server.rpc.signatures import Signatures
from pluralllm.server.runs.assembly import Assembly
from pluralllm.server.runs.coordinator import Timing
from pluralllm.server.runs.uploads import Uploads

LEASE_S = 20.0
TIMING = Timing(lease_s=LEASE_S, silence_s=5.0, tick_s=2.5, keep_updates=3)
POLL_HOLD_S = 20.0
CALLS_AT_A_TIME = 1000
MAX_TURNS_TO_DIE = 200
# The coordinator's background tasks: if one ends by itself, nobody does its work any more.
BACKGROUND = frozenset({"Coordinator._drive", "Coordinator._average_until_done", "Coordinator._collect", "Intake.tend"})

_process: ContextVar["Process | None"] = ContextVar("process", default=None)


class Folders:
    """The folders of a coordinator's files."""

    def __init__(self, folder: Path) -> None:
        self.blobs, self.scratch, self.uploads = (folder / name for name in ("blobs", "scratch", "uploads"))
        for folder_of_kind in (self.blobs, self.scratch, self.uploads):
            folder_of_kind.mkdir()


class Process:
    """One process of the coordinator: all its objects are new, but the store and the blobs are those of earlier processes."""

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
        self.parts = Assembly(
            store,
            blobs,
            clock,
            self.fail_stop,
            TIMING,
            scratch=folders.scratch,
            uploads=Uploads(folders.uploads),
            poll_hold_s=POLL_HOLD_S,
        )
        self._service: Service | None = None

    def spawn(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Starts a task that belongs to the process, in a context of its own."""
        return asyncio.get_running_loop().create_task(work, context=self._context.copy())

    async def start(self) -> None:
        """Starts the coordinator, as __main__ does it. Raises the store's errors."""
        audit_log = AuditLog(self._membership, self.clock.now_s)
        await audit_log.start()
        await self.parts.coordinator.start()
        self.spawn(self.parts.intake.tend())
        self.spawn(self._fail_stop())
        roster = RosterLog(self._membership, audit_log)
        await roster.start()
        federation = federation_of(self.parts, POLL_HOLD_S, 30.0, Signatures(lambda: (0, ""), None), roster)
        self._service = await Service.of(federation, MainDoor(by_word, audit_log, CALLS_AT_A_TIME), self.fail_stop)

    async def _fail_stop(self) -> None:
        await self.fail_stop.stopped()
        self.kill()

    def answer(self, client: str, method: str, requests: list[bytes]) -> "asyncio.Task[list[bytes]] | None":
        """Starts a call and returns its task; returns None if the coordinator does not serve."""
        if self.dead or self._service is None:
            return None
        work = self.spawn(self._service.answer(client, method, requests))
        work.add_done_callback(_forget)  # the caller may be gone when the work ends
        return work

    def ended(self, task: "asyncio.Task[Any]") -> None:
        """Removes a task that has ended; records the error of a background task."""
        self.tasks.discard(task)
        name = getattr(task.get_coro(), "__qualname__", "")
        if name in BACKGROUND and not self.dead and not task.cancelled() and (error := task.exception()) is not None:
            self.broken.append(f"{name} ended with {error!r}")

    def describe(self) -> str:
        troubles = self.parts.troubles
        runs = (f"{r.state.phase} in round {r.state.round} {troubles.of(r.id)}" for r in self.parts.runs.all())
        return "; ".join((*runs, *self.broken))

    def kill(self) -> None:
        """Cancels all tasks of the process, so that it does nothing any more."""
        self.dead = True
        for task in tuple(self.tasks):
            task.cancel()
        self.gone.set()

    async def buried(self) -> None:
        """Waits until the last task of the process is gone."""
        for _ in range(MAX_TURNS_TO_DIE):
            if not self.tasks:
                return
            for task in tuple(self.tasks):
                task.cancel()
            await asyncio.sleep(0)
        raise AssertionError(f"these would not die: {self.tasks}")


class Operations:
    """The hooks of the stores and the runner of blocking work: faults may strike each of these operations."""

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
        """Replaces asyncio.to_thread: runs the function without a thread, after others may have run."""
        name = function.__qualname__.removesuffix(".<locals>.<lambda>").rpartition(".")[2].lstrip("_")
        about = args[0] if args else None
        path = getattr(about, "path", about)
        key = f"{self._faults.round} {name} {path.name if isinstance(path, Path) else ''}"
        for _ in range(zlib.crc32(key.encode()) % 3):
            await asyncio.sleep(0)
        await self.before(f"disk.{name}", about)
        result = function(*args, **named)
        await self.after(f"disk.{name}", about)
        return result


class InLine(Executor):
    """A thread pool without threads: it runs submitted work at once."""

    def __init__(self, threads: int) -> None:
        pass

    def submit(self, work: Callable[..., Any], /, *args: Any, **named: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(work(*args, **named))
        except BaseException as error:  # noqa: BLE001 -- like a thread's future, it holds whatever ends its work
            future.set_exception(error)
        return future


def _check_alive(process: Process) -> None:
    if process.dead:
        raise asyncio.CancelledError


@contextlib.contextmanager
def without_threads(operations: Operations) -> Iterator[None]:
    """Runs the coordinator's blocking work without threads, and assigns each task to its process."""
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
    task = asyncio.Task(work, loop=loop, context=context, **named)
    process = _process.get() if context is None else context.get(_process)
    if process is not None:
        process.tasks.add(task)
        task.add_done_callback(process.ended)
        if process.dead:
            task.cancel()
    return task
