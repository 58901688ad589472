"""Work in a thread that changes files: whoever is cancelled meanwhile waits for its end."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


async def to_its_end(work: Callable[..., Result], *arguments: Any) -> Result:
    """Runs work in a thread and returns its result. If the caller is cancelled meanwhile, it first waits for the thread's end.

    Nothing can stop a thread. What is done after the cancellation, such as deleting files, would otherwise be done beside it.
    """
    thread = asyncio.create_task(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.wait([thread])
        raise
