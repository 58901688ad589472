"""Fail-stop: when disk or database can no longer be trusted, the process ends before it acknowledges any other call.

A disk that failed once may report success the next time although bytes are lost (fsync(2), "Notes on error reporting"). So
the process does not retry the failed operation. The next process starts from the data on the disk.
"""

import asyncio
import errno

from pluralllm.common.errors.tree import DiskFailed, PluralError

DISK_ERRORS = frozenset({errno.EIO, errno.EROFS, errno.ENXIO, errno.ENODEV})


class FailStop:
    """The stop signal of the process, for errors after which disk or database can no longer be trusted.

    Code that meets such an error reports the error with the method `stop`. The composition root (composition.py) then ends the
    process.
    """

    def __init__(self) -> None:
        self.why: PluralError | None = None  # the first error that was reported; calls are refused with it
        self._stopped = asyncio.Event()

    def stop(self, error: PluralError) -> None:
        """Reports an error that ends the process. If several errors are reported, the first error is kept as the reason."""
        self.why = self.why or error
        self._stopped.set()

    def disk_failure(self, error: BaseException) -> PluralError | None:
        """Checks whether an error means that the disk has failed.

        If the disk has failed, reports the failure and returns it as DiskFailed. Otherwise returns None.
        """
        if not isinstance(error, OSError) or error.errno not in DISK_ERRORS:
            return None
        failure = DiskFailed(problem=str(error))
        self.stop(failure)
        return failure

    async def stopped(self) -> PluralError:
        """Waits until an error is reported that ends the process, and returns the first such error."""
        await self._stopped.wait()
        assert self.why is not None
        return self.why
