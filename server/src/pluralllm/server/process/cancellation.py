"""Lets work that must not stop half-way run to its end, although its caller may be cancelled at any moment."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import structlog

from pluralllm.common.errors.tree import PluralError

log = structlog.get_logger()

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_running: set[asyncio.Task[Any]] = set()  # keeps the tasks alive: the event loop has only weak references to them


def unbroken(
    method: Callable[Arguments, Coroutine[Any, Any, Result]],
) -> Callable[Arguments, Coroutine[Any, Any, Result]]:
    """Makes a method run to its end even if its caller is cancelled, so that disk and memory stay consistent.

    Returns the method with the same arguments and result.
    """

    @functools.wraps(method)
    async def run(*positional: Arguments.args, **named: Arguments.kwargs) -> Result:
        task = asyncio.create_task(method(*positional, **named))
        _running.add(task)
        task.add_done_callback(_running.discard)
        return await shielded(task)

    return run


async def shielded(task: "asyncio.Task[Result]") -> Result:
    """Waits for a task and returns its result. If the caller is cancelled, the task goes on.

    If the task fails after the caller was cancelled, the task's error is logged.
    """
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_log_failure)
        raise


def _log_failure(task: "asyncio.Task[Any]") -> None:
    """Logs the error of a task whose caller was cancelled, so that the error is not lost."""
    error = None if task.cancelled() else task.exception()
    if isinstance(error, PluralError):
        log.warning("call.failed_unheard", reason=error.reason, problem=str(error))
    elif error is not None:
        log.error("call.broken_unheard", exc_info=error)
