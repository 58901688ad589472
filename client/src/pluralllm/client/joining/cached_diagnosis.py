"""Keeps the result of a diagnosis for a while, because the coordinator limits the calls to its enrolment port.

A diagnosis finds out why the coordinator does not answer.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pluralllm.client.joining.diagnosis import Cause
    from pluralllm.common.trust.identity import Identity


def _diagnose(identity: "Identity") -> "Cause | None":
    from pluralllm.client.joining.diagnosis import diagnose  # noqa: PLC0415 - most members never need one

    return diagnose(identity)


class CachedDiagnosis:
    """A cache around the function `diagnose`, which it calls again only when the last result is too old."""

    def __init__(
        self,
        keep_s: float,
        diagnose_member: "Callable[[Identity], Cause | None]" = _diagnose,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keep_s, self._diagnose_member, self._monotonic_s = keep_s, diagnose_member, monotonic_s
        self._cause: Cause | None = None
        self._ends_s = -1.0  # monotonic time at which the kept answer becomes too old; negative before the first answer

    def cause(self, identity: "Identity") -> "Cause | None":
        """Returns the cause that keeps this member from reaching its coordinator; None if no cause was found.

        The call may block for some seconds.
        """
        if self._ends_s < 0 or self._monotonic_s() >= self._ends_s:
            self._cause = self._diagnose_member(identity)
            self._ends_s = self._monotonic_s() + self._keep_s
        return self._cause
