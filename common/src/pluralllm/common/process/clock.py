"""Clocks, which code takes as an argument: a real one, and a fake one for tests."""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """A source of time: seconds since the epoch that never run backwards, and a way to wait."""

    def now_s(self) -> float: ...

    async def sleep(self, duration_s: float) -> None: ...


class SystemClock:
    """The clock of a real process: the wall time at its start plus the monotonic time since then.

    A later change of the machine's wall clock therefore moves no deadline.
    """

    def __init__(self) -> None:
        self._offset_s = time.time() - time.monotonic()

    def now_s(self) -> float:
        return self._offset_s + time.monotonic()

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(max(0.0, duration_s))


class FakeClock:
    """A clock for tests that stands still until a test advances it."""

    def __init__(self, start_s: float = 1_000.0) -> None:
        self._now_s = start_s
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now_s(self) -> float:
        return self._now_s

    async def sleep(self, duration_s: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._now_s + duration_s, woken))
        await woken

    def advance(self, duration_s: float) -> None:
        """Moves the time forward, and wakes every sleeper whose time has come."""
        self._now_s += duration_s
        due = [woken for until_s, woken in self._sleepers if until_s <= self._now_s]
        self._sleepers = [(until_s, woken) for until_s, woken in self._sleepers if until_s > self._now_s]
        for woken in due:
            if not woken.done():
                woken.set_result(None)
