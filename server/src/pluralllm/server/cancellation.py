"""Callers may hang up at any moment; what must not be left half done is shielded from it."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

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
        return await asyncio.shield(task)

    return run
