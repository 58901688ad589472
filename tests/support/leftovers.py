"""Finds the processes that a test module has started and not ended.

Each process has a mark in its environment, which its children inherit.
"""

import contextlib
import os
from collections.abc import Iterator

import psutil

MARK = "PYTEST_STARTED_BY"
GRACE_S = 20.0  # for processes that are about to end
# Processes of the whole session: the stores, the processes that load libraries for forks, multiprocessing's own.
KEPT = (
    "postgres",
    "moto.server",
    "multiprocessing.forkserver",
    "support.fork_server",
    "multiprocessing.resource_tracker",
)


def left_over(mark: str) -> list[psutil.Process]:
    """Returns the processes with the mark that are not services of the session."""
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                line = " ".join(process.cmdline())
                if process.status() != psutil.STATUS_ZOMBIE and not any(name in line for name in KEPT):
                    left.append(process)
    return left


@contextlib.contextmanager
def nothing_left_over(name: str) -> Iterator[None]:
    """Ends the processes that a block has left running and raises an error, even when the block itself has failed."""
    mark = os.environ[MARK] = f"{os.getpid()} {name}"
    try:
        yield
    finally:
        _, alive = psutil.wait_procs(left_over(mark), timeout=GRACE_S)
        commands = []
        for process in alive:
            with contextlib.suppress(psutil.Error):
                commands.append(" ".join(process.cmdline()))
                process.kill()
        assert not commands, f"{name} has left processes running (they are killed now): {commands}"
