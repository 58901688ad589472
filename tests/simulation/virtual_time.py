"""An event loop whose time passes only when no task can run: hours take milliseconds, always in the same order."""

import asyncio
import math
import selectors
from typing import Any

from pluralllm.common.process.clock import FakeClock

MAX_STEPS = 20_000_000  # steps of one loop; a task that waits forever then ends with an error


class Standstill(Exception):
    """No task can run, or the time limit has passed."""


class SimulatedClock(FakeClock):
    """A fake clock that knows when the next sleeper wakes up."""

    @property
    def next_s(self) -> float:
        """The seconds until the first sleeper wakes up; infinite if nobody sleeps."""
        waiting = [until_s for until_s, woken in self._sleepers if not woken.done()]
        return max(0.0, min(waiting) - self.now_s()) if waiting else math.inf


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop that reads no socket and starts no thread; the coordinator's fake clock follows its time."""

    def __init__(self) -> None:
        self._passed_s = 0.0
        self._steps = 0
        self._jump_s = 0.0
        self._limit_s = math.inf
        self._given_up: asyncio.Future[None] | None = None
        self.clock: SimulatedClock | None = None
        super().__init__(_Nothing(self))
        self._clock_resolution = 1e-6  # the rounding error of sums of waits

    def time(self) -> float:
        return self._passed_s

    def given_up(self, limit_s: float) -> "asyncio.Future[None]":
        """Returns a future that raises Standstill, once, when no task can run or the time limit has passed."""
        self._limit_s, self._given_up = limit_s, self.create_future()
        return self._given_up

    def jump(self, length_s: float) -> None:
        """Adds time in which nobody did anything, as when a machine slept, at the next moment of rest."""
        self._jump_s += length_s

    def rest(self, timeout_s: float) -> None:
        """Advances the time to the next moment at which a task wants to go on."""
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
        self._limit_s, self._steps = math.inf, 0  # the tasks that clean up get new limits


class _Nothing(selectors.SelectSelector):
    """A selector that finds no events and returns at once; the loop counts the waiting time."""

    def __init__(self, loop: SimulatedLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None or timeout > 0:
            self._loop.rest(math.inf if timeout is None else timeout)
        return []
