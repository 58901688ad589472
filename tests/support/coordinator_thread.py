"""A coordinator that serves in a thread of its own, so that a test calls it as a program or a notebook does."""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from support.coordinator_harness import Served, serving

T = TypeVar("T")
LIMIT_S = 30.0


@dataclass(frozen=True)
class InThread:
    """A coordinator and the event loop that it runs in; the method is for other threads."""

    served: Served
    loop: asyncio.AbstractEventLoop

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in the coordinator's loop, to its end."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(LIMIT_S)


@contextlib.contextmanager
def serving_in_thread(folder: Path, **settings: Any) -> Iterator[InThread]:
    """Runs a coordinator in a thread until the block ends. folder: its state directory. settings: as in `serving`."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    up: Future[Served] = Future()
    down = asyncio.Event()

    async def serve() -> None:
        async with serving(folder, **settings) as served:
            up.set_result(served)
            await down.wait()

    task = asyncio.run_coroutine_threadsafe(serve(), loop)
    started: list[Future[Any]] = [up, task]
    for done in wait(started, LIMIT_S, FIRST_COMPLETED).done:
        done.result()
    coordinator = InThread(up.result(0), loop)
    try:
        yield coordinator
    finally:
        loop.call_soon_threadsafe(down.set)
        task.result(LIMIT_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(LIMIT_S)
        loop.close()
