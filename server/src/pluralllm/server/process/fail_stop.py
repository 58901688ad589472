"""Fail-stop: when disk or database can no longer be trusted, the process ends before acknowledging anything else.

A disk that failed once may report success the next time although bytes are lost (fsync(2), "Notes on error reporting"). So
the process retries nothing; the next process starts from the data on the disk.
"""

import asyncio
import errno

from pluralllm.common.errors.tree import DiskFailed, PluralError

DISK_ERRORS = frozenset({errno.EIO, errno.EROFS, errno.ENXIO, errno.ENODEV})


class FailStop:
    """The stop signal of the process, for errors after which disk or database can no longer be trusted.

    Code that meets such an error reports the error by `stop`, and the composition root (composition.py) ends the process.
    """

    def __init__(self) -> None:
        self.why: PluralError | None = None  # the first error that was reported; calls are refused with it
        self._stopped = asyncio.Event()

    def stop(self, error: PluralError) -> None:
        """Reports an error that ends the process. If several are reported, the first one is kept as the reason."""
        self.why = self.why or error
        self._stopped.set()

    def disk_failure(self, error: BaseException) -> PluralError | None:
        """Reports an error that means a failed disk, and returns it as DiskFailed; returns None for any other error."""
        if not isinstance(error, OSError) or error.errno not in DISK_ERRORS:
            return None
        failure = DiskFailed(problem=str(error))
        self.stop(failure)
        return failure

    async def stopped(self) -> PluralError:
        """Waits until an error is reported, and returns the first one."""
        await self._stopped.wait()
        assert self.why is not None
        return self.why
