"""Fail-stop: when disk or database cannot be trusted any more the process ends, before it promises anything else.

A disk that failed once may say that all is well the next time though bytes are lost (fsync(2), "Notes on error reporting"), so
nothing is tried again in the same process: the next one starts from what is on the disk.
"""

import asyncio
import errno

from pluralllm.common.errors.tree import DiskFailed, PluralError

DISK_ERRORS = frozenset({errno.EIO, errno.EROFS, errno.ENXIO, errno.ENODEV})


class FailStop:
    """One for each process: whoever meets such an error shows it here, and the composition root ends the process."""

    def __init__(self) -> None:
        self.why: PluralError | None = None  # the first; whoever serves refuses with it
        self._stopped = asyncio.Event()

    def stop(self, error: PluralError) -> None:
        self.why = self.why or error
        self._stopped.set()

    def disk_failure(self, error: BaseException) -> PluralError | None:
        """What it is in our error tree if the disk has failed, and then all is over; None for anything else."""
        if not isinstance(error, OSError) or error.errno not in DISK_ERRORS:
            return None
        found = DiskFailed(problem=str(error))
        self.stop(found)
        return found

    async def stopped(self) -> PluralError:
        """When it is all over, why."""
        await self._stopped.wait()
        assert self.why is not None
        return self.why
