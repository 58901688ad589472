"""An event loop in which time passes only when nothing is left to do: hours in milliseconds, and always in the same order."""

import asyncio
import math
import selectors
from typing import Any

from pluralllm.common.process.clock import FakeClock

MAX_STEPS = 20_000_000  # of one loop: whoever waits for what never comes is told so


class Standstill(Exception):
    """Everybody waits for somebody else, or for ever."""


class SimulatedClock(FakeClock):
    """A fake clock that knows when it is next waited for."""

    @property
    def next_s(self) -> float:
        """Seconds from now to the first sleeper's time; infinite if nobody sleeps."""
        waiting = [until_s for until_s, woken in self._sleepers if not woken.done()]
        return max(0.0, min(waiting) - self.now_s()) if waiting else math.inf


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Reads no socket and starts no thread. A coordinator's fake clock runs with the loop's own time."""

    def __init__(self) -> None:
        self._passed_s = 0.0
        self._steps = 0
        self._jump_s = 0.0
        self._limit_s = math.inf
        self._given_up: asyncio.Future[None] | None = None
        self.clock: SimulatedClock | None = None
        super().__init__(_Nothing(self))
        self._clock_resolution = 1e-6  # of sums of waits

    def time(self) -> float:
        return self._passed_s

    def given_up(self, limit_s: float) -> "asyncio.Future[None]":
        """Raises Standstill when nobody has anything to wait for, or when so much time has passed, once."""
        self._limit_s, self._given_up = limit_s, self.create_future()
        return self._given_up

    def jump(self, length_s: float) -> None:
        """Time in which nobody did anything: a machine that slept. From the next moment of rest on."""
        self._jump_s += length_s

    def rest(self, timeout_s: float) -> None:
        """To the next time at which somebody wants to go on."""
        step_s = timeout_s if self.clock is None else min(timeout_s, self.clock.next_s)
        self._steps += 1
        if math.isinf(step_s) or self._steps > MAX_STEPS or self._passed_s > self._limit_s:
            self._give_up()
            return
        step_s, self._jump_s = step_s + self._jump_s, 0.0
        self._passed_s += step_s
        if self.clock is not None:
            self.clock.advance(step_s)

    def _give_up(self) -> None:
        error = Standstill(f"nothing happens any more after {self._passed_s:.0f} s and {self._steps} steps")
        if self._given_up is None or self._given_up.done():
            raise error
        self._given_up.set_exception(error)
        self._limit_s, self._steps = math.inf, 0  # for whoever has to clean up


class _Nothing(selectors.SelectSelector):
    """A selector that finds nothing, at once; the wait is the loop's to count."""

    def __init__(self, loop: SimulatedLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None or timeout > 0:
            self._loop.rest(math.inf if timeout is None else timeout)
        return []
