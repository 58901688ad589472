"""The partner's limits on the worker process: the time of one task's work, and the memory of the process.

The memory is read from /proc and not limited by the kernel: a limit on addresses would also count the address space that CUDA
reserves, which is many times the memory in use.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from pluralllm.client.disclosure.policy import Policy
from pluralllm.common.errors.tree import PolicyForbids

GIB = 2**30
LOOK_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """The limits of one worker process; None means that there is none."""

    task_minutes: float | None = None
    memory_gib: float | None = None

    @classmethod
    def of(cls, policy: Policy) -> "WorkerLimits":
        """Returns the limits of a policy."""
        return cls(policy.max_task_minutes, policy.max_worker_memory_gib)

    @contextlib.asynccontextmanager
    async def task_time(self) -> AsyncIterator[None]:
        """Limits the time of the block: the work on one task. If the block takes longer, cancels it and raises PolicyForbids."""
        limit = None if self.task_minutes is None else asyncio.timeout(self.task_minutes * 60)
        try:
            async with limit or contextlib.nullcontext():
                yield
        except TimeoutError as error:
            if limit is None or not limit.expired():
                raise
            allowed = f"at most {self.task_minutes:g}"
            raise PolicyForbids(
                key="max_task_minutes", asked=f"more than {self.task_minutes:g}", allowed=allowed
            ) from error

    async def until_memory_exceeds(self, pid: int) -> PolicyForbids:
        """Waits until the process holds more memory than the limit, and returns the error that says so.

        The wait never ends if there is no limit, or if this system has no /proc.
        """
        while self.memory_gib is None or resident_bytes(pid) <= self.memory_gib * GIB:  # noqa: ASYNC110 - no event tells it
            await asyncio.sleep(LOOK_EVERY_S)
        asked = f"{resident_bytes(pid) / GIB:.1f}"
        return PolicyForbids(key="max_worker_memory_gib", asked=asked, allowed=f"at most {self.memory_gib:g}")


NO_LIMITS = WorkerLimits()


def resident_bytes(pid: int) -> int:
    """Returns the resident memory of a process; 0 if there is no such process, or no /proc on this system."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
