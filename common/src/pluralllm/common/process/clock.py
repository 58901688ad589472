"""Clocks: a real clock, and a fake clock for tests. A function that needs the time takes its clock as an argument."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Protocol


class Clock(Protocol):
    """A source of time. The time is in seconds since the epoch and never decreases. A clock can also wait for a duration."""

    def now_s(self) -> float: ...

    async def sleep(self, duration_s: float) -> None: ...


class SystemClock:
    """The clock of a real process. Its time is the wall time when the clock was created, plus the monotonic time since then.

    If somebody changes the machine's wall clock later, no deadline moves.
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

    def sleep(self, duration_s: float) -> Coroutine[Any, Any, None]:
        """Begins the wait at once, and not when the result is first awaited: time may pass in between."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if duration_s <= 0:
            woken.set_result(None)
        else:
            self._sleepers.append((self._now_s + duration_s, woken))
        return _until(woken)

    def advance(self, duration_s: float) -> None:
        """Moves the time forward, and wakes every sleeper whose waiting time has passed."""
        self._now_s += duration_s
        due = [woken for until_s, woken in self._sleepers if until_s <= self._now_s]
        self._sleepers = [(until_s, woken) for until_s, woken in self._sleepers if until_s > self._now_s]
        for woken in due:
            if not woken.done():
                woken.set_result(None)


async def _until(woken: "asyncio.Future[None]") -> None:
    await woken
