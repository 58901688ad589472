"""The network between clients and coordinator: calls get lost, arrive twice or late, or break in the middle."""

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from simulation.calls import CallFailed
from simulation.faults import Armed, Faults, Kind
from simulation.process import Process
from simulation.trace import Trace

from pluralllm.common.errors.grpc_status import from_rpc_error
from pluralllm.common.errors.tree import PluralError, Unreachable

DEADLINE_S = 3.0
REFUSED = "connection refused"
MOST_TURNS = 16  # at most so many turns of the event loop before a connection is cut


class Killed(Exception):
    """The client's process died in the middle of a call."""


class Network:
    """The network of all clients; each client draws its delays from a random stream of its own."""

    def __init__(self, faults: Faults, trace: Trace, coordinator: Callable[[], Process | None]) -> None:
        self._faults, self._trace, self._coordinator = faults, trace, coordinator
        self._on_the_way: set[asyncio.Task[None]] = set()

    async def call(
        self, client: str, draw: random.Random, method: str, requests: Sequence[bytes], deadline_s: float = DEADLINE_S
    ) -> list[bytes]:
        """Returns the messages of the answer. Raises the coordinator's error, Unreachable or Killed."""
        fault = self._faults.of_call(client, method)
        await asyncio.sleep(draw.uniform(0.0005, 0.005))
        outcome = "answered"
        try:
            return await self._deliver(client, method, list(requests), deadline_s, fault)
        except PluralError as error:
            outcome = error.reason
            raise
        except Killed:
            outcome = "killed"
            raise
        finally:
            self._trace.note(client, f"{method} {outcome}")

    async def _deliver(
        self, client: str, method: str, requests: list[bytes], deadline_s: float, fault: Armed | None
    ) -> list[bytes]:
        kind, number = (None, 0) if fault is None else (fault.kind, fault.number)
        late_s = 0.01 + number % 1000 / 1000 * 2 * DEADLINE_S
        if kind is Kind.REQUEST_LOST:
            await self._time_out(deadline_s)
        if kind is Kind.REQUEST_TWICE:
            self._spawn(self._later(late_s, client, method, requests))
        if kind is Kind.REQUEST_LATE:
            if late_s >= deadline_s:
                self._spawn(self._later(late_s, client, method, requests))
                await self._time_out(deadline_s)
            await asyncio.sleep(late_s)
        process = self._coordinator()
        work = None if process is None else process.answer(client, method, requests)
        if work is None:
            raise Unreachable(address="the coordinator", problem=REFUSED)
        if kind is Kind.CONNECTION_CUT or (kind is Kind.CLIENT_KILLED and fault is not None and not fault.after):
            await _hang_up(work, number % MOST_TURNS)
            raise Killed if kind is Kind.CLIENT_KILLED else Unreachable(address="the coordinator", problem="cut")
        await _wait(work, deadline_s)
        if kind is Kind.CLIENT_KILLED:
            raise Killed
        if kind is Kind.REPLY_LOST:
            await self._time_out(deadline_s)
        try:
            return work.result()
        except CallFailed as error:
            raise from_rpc_error(error, "the coordinator") from error

    async def _time_out(self, deadline_s: float) -> None:
        await asyncio.sleep(deadline_s)
        raise Unreachable(address="the coordinator", problem="no answer in time")

    async def _later(self, late_s: float, client: str, method: str, requests: list[bytes]) -> None:
        """Delivers a request late, when nobody waits for its answer any more."""
        await asyncio.sleep(late_s)
        process = self._coordinator()
        work = None if process is None else process.answer(client, method, requests)
        if work is not None:
            with contextlib.suppress(Unreachable, CallFailed):
                await _wait(work, DEADLINE_S)
                work.result()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._on_the_way.add(task)
        task.add_done_callback(self._on_the_way.discard)


async def _wait(work: "asyncio.Task[list[bytes]]", deadline_s: float) -> None:
    """Waits until the work is done; cancels the handler after the deadline, as gRPC does. Raises Unreachable."""
    try:
        await asyncio.wait([work], timeout=deadline_s)
    finally:
        in_time = work.done()
        if not in_time:
            work.cancel()
    if not in_time or work.cancelled():
        problem = "the connection broke" if in_time else "no answer in time"
        raise Unreachable(address="the coordinator", problem=problem)


async def _hang_up(work: "asyncio.Task[list[bytes]]", turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    work.cancel()
    await asyncio.wait([work])
    if not work.cancelled():
        work.exception()  # marks the exception as retrieved, because nobody else will read it
