"""Finds processes that a test module has started and not ended.

They carry a mark in their environment, which their own children inherit.
"""

import contextlib
import os
from collections.abc import Iterator

import psutil

MARK = "PYTEST_STARTED_BY"
GRACE_S = 20.0  # for those that are about to end
# Started once for the whole session; what loads libraries for `support.commands` and what multiprocessing keeps beside it.
KEPT = ("postgres", "moto.server", "multiprocessing.forkserver", "multiprocessing.resource_tracker")


def left_over(mark: str) -> list[psutil.Process]:
    """Processes that carry the mark and are no service of the session."""
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
    """Ends what a block has started and left running, and fails for it: also where the block itself has failed."""
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
