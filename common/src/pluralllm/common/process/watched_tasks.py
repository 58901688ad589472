"""The background tasks of a process: a task that fails is started again, and no end of a task goes unnoticed.

Only this module starts tasks that nobody awaits. An architecture test lists the few other places, which await what they start.
"""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import structlog

from pluralllm.common.errors.tree import BackgroundFailed, PluralError
from pluralllm.common.process.clock import Clock

log = structlog.get_logger()

RESTARTS, WINDOW_S = 5, 60.0  # a task that fails more often than this within the window ends the process
FIRST_PAUSE_S = 0.1  # before the first restart in a window; doubled before each further one

Result = TypeVar("Result")


class WatchedTasks:
    """The background tasks of a process, on one event loop."""

    def __init__(self, clock: Clock, give_up: Callable[[PluralError], object]) -> None:
        """Makes an object without tasks.

        give_up: is called with the reason when a task has failed too often. It must end the process.
        """
        self._clock, self._give_up = clock, give_up
        self._tasks: set[asyncio.Task[Any]] = set()

    def keep(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> "asyncio.Task[None]":
        """Runs the coroutine that `work` makes, and makes and runs another one whenever it has failed.

        name: the name in the log. Returns the task of the whole, which ends when the coroutine returns. After more than RESTARTS
        failures within WINDOW_S seconds, `give_up` is called.
        """
        return self.spawn(name, self._restarting(name, work))

    def spawn(self, name: str, work: Coroutine[Any, Any, Result]) -> "asyncio.Task[Result]":
        """Starts a task that runs once, and returns it. An error of the task is logged under this name."""
        task = self._start(work)
        task.add_done_callback(partial(_log_failure, name))
        return task

    async def stop(self) -> None:
        """Cancels all tasks and waits for their ends."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, Result]) -> "asyncio.Task[Result]":
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the event loop has only weak references to its tasks
        task.add_done_callback(self._tasks.discard)
        return task

    async def _restarting(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        failures_s: list[float] = []
        while True:
            # A task of its own, so that a cancellation by anybody but the owner ends this attempt only.
            attempt = self._start(work())
            try:
                await asyncio.wait([attempt])
            except asyncio.CancelledError:
                attempt.cancel()
                await asyncio.wait([attempt])
                raise
            if (error := _failure(attempt)) is None:
                return
            now_s = self._clock.now_s()
            failures_s = [*(at_s for at_s in failures_s if now_s - at_s < WINDOW_S), now_s]
            if len(failures_s) > RESTARTS:
                problem = str(error) or type(error).__name__
                log.error("background.gave_up", work=name, failures=len(failures_s), exc_info=error)
                self._give_up(BackgroundFailed(work=name, problem=problem))
                return
            pause_s = FIRST_PAUSE_S * 2 ** (len(failures_s) - 1)
            log.error("background.restarted", work=name, pause_s=pause_s, exc_info=error)
            await self._clock.sleep(pause_s)


def _failure(task: "asyncio.Task[Any]") -> BaseException | None:
    """Returns the error that ended a task, also for a task that was cancelled; None if the task has returned."""
    return asyncio.CancelledError("somebody cancelled it") if task.cancelled() else task.exception()


def _log_failure(name: str, task: "asyncio.Task[Any]") -> None:
    """Logs the error of a task that runs once. A cancellation is no error: the owner of the task has cancelled it."""
    error = None if task.cancelled() else task.exception()
    if isinstance(error, PluralError):
        log.warning("background.failed", work=name, reason=error.reason, problem=str(error))
    elif error is not None:
        log.error("background.broken", work=name, exc_info=error)
