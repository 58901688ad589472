"""Measures a transfer, so that a link that is too slow is reported as such and not as a coordinator that does not answer."""

import contextlib
import time
from collections.abc import Callable, Iterator

from pluralllm.common.errors.tree import LinkTooSlow, NoAnswer
from pluralllm.common.process.light_log import LightLog
from pluralllm.common.weights.pieces import SLOWEST_LINK_BYTES_S

MEASURED_S = 10.0  # a shorter transfer says nothing about the link
STALLED_S = 15.0  # after this time without a byte, a transfer that fails has stalled: its link is not just slow
KIB = 1024
log = LightLog()


class Speed:
    """The bytes of one transfer, and when they moved."""

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_s = monotonic_s
        self._begun_s = self._moved_s = monotonic_s()
        self._bytes = 0

    def moved(self, size_bytes: int) -> None:
        """Counts bytes that the network has taken or brought."""
        self._bytes += size_bytes
        self._moved_s = self._monotonic_s()

    @property
    def bytes_s(self) -> float:
        """The speed since the transfer began, in bytes per second; infinite for a transfer that is too short to measure."""
        took_s = self._monotonic_s() - self._begun_s
        return self._bytes / took_s if took_s >= MEASURED_S else float("inf")

    @property
    def is_too_slow(self) -> bool:
        """Whether bytes still move, but more slowly than the slowest supported link moves them."""
        return self.bytes_s < SLOWEST_LINK_BYTES_S and self._monotonic_s() - self._moved_s < STALLED_S


@contextlib.contextmanager
def measured(address: str, way: str, monotonic_s: Callable[[], float] = time.monotonic) -> Iterator[Speed]:
    """Measures the transfer inside the block, which counts its bytes. way: "to" or "from" the coordinator at `address`.

    A transfer that is too slow and succeeds is logged as a warning. If it fails, the block's NoAnswer becomes LinkTooSlow.
    """
    speed = Speed(monotonic_s)
    try:
        yield speed
    except NoAnswer as failure:
        if speed.is_too_slow:
            raise _too_slow(address, way, speed) from failure
        raise
    if speed.bytes_s < SLOWEST_LINK_BYTES_S:
        log.warning("link.too_slow", problem=str(_too_slow(address, way, speed)))


def _too_slow(address: str, way: str, speed: Speed) -> LinkTooSlow:
    return LinkTooSlow(address=address, way=way, kib_s=speed.bytes_s / KIB, needed_kib_s=SLOWEST_LINK_BYTES_S / KIB)
