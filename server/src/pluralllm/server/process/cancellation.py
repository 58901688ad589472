"""Callers may hang up at any moment; what must not be left half done is shielded from it."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import structlog

from pluralllm.common.errors.tree import PluralError

log = structlog.get_logger()

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_running: set[asyncio.Task[Any]] = set()  # the event loop itself holds its tasks weakly


def unbroken(
    method: Callable[Arguments, Coroutine[Any, Any, Result]],
) -> Callable[Arguments, Coroutine[Any, Any, Result]]:
    """Runs to its end even if the caller is cancelled: disk and memory must not part in the middle of a call."""

    @functools.wraps(method)
    async def run(*given: Arguments.args, **named: Arguments.kwargs) -> Result:
        task = asyncio.create_task(method(*given, **named))
        _running.add(task)
        task.add_done_callback(_running.discard)
        return await shielded(task)

    return run


async def shielded(task: "asyncio.Task[Result]") -> Result:
    """Waits for a task that goes on if its caller is cancelled; why it failed is then logged."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_tell_unheard)
        raise


def _tell_unheard(task: "asyncio.Task[Any]") -> None:
    """Whoever would have been told why it failed has gone."""
    error = None if task.cancelled() else task.exception()
    if isinstance(error, PluralError):
        log.warning("call.failed_unheard", reason=error.reason, problem=str(error))
    elif error is not None:
        log.error("call.broken_unheard", exc_info=error)
