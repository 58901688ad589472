"""Chunks in pieces: what a sender and a receiver need on a slow link.

A chunk of 1 MiB takes a minute on the slowest link. Sent as one message, it would look like silence for a minute, and every
other call on the connection would wait behind it. So a sender cuts chunks into pieces of the size that its link carries in a
moment, and on a fast link sends whole chunks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.weights.chunks import CHUNK_BYTES

SLOWEST_LINK_BYTES_S = 16 * 1024  # a slower link is not supported
PIECE_BYTES = 16 * 1024  # the smallest piece: a second on the slowest link
# HTTP/2 takes the first 64 KiB of a stream at once, whatever the link is: the first six pieces measure nothing.
UNMEASURED_PIECES = 6
QUICK_S, SLOW_S = 0.25, 1.0


def transfer_s(size_bytes: int) -> float:
    """Returns the time in seconds that so many bytes take on the slowest supported link."""
    return size_bytes / SLOWEST_LINK_BYTES_S


class PieceSizes:
    """The sizes of a sender's pieces: twice as large after a piece that went quickly, half as large after a slow one."""

    def __init__(self, monotonic_s: Callable[[], float], first_bytes: int = PIECE_BYTES) -> None:
        """Starts with pieces of `first_bytes` bytes, or of the nearest size that is allowed. monotonic_s: a clock in seconds."""
        self.next_bytes = min(max(first_bytes, PIECE_BYTES), CHUNK_BYTES)
        self._monotonic_s, self._sent = monotonic_s, 0

    def cut(self, chunk: memoryview) -> Iterator[tuple[memoryview, bool]]:
        """Yields the pieces of a chunk, and whether more pieces of the chunk follow.

        The caller asks for the next piece when the network has taken the piece before it: the time between the two decides the
        next size.
        """
        start = 0
        while start < len(chunk):
            end, began_s = min(len(chunk), start + self.next_bytes), self._monotonic_s()
            yield chunk[start:end], end < len(chunk)
            self._fit(self._monotonic_s() - began_s)
            start = end

    def _fit(self, took_s: float) -> None:
        self._sent += 1
        if took_s > SLOW_S:
            self.next_bytes = max(PIECE_BYTES, self.next_bytes // 2)
        elif took_s < QUICK_S and (self._sent >= UNMEASURED_PIECES or self.next_bytes > PIECE_BYTES):
            self.next_bytes = min(CHUNK_BYTES, self.next_bytes * 2)


@dataclass(slots=True)
class Pieces:
    """The chunk of a stream that is arriving, as far as it has arrived."""

    is_in_pieces: bool = False  # the sender has sent a piece that is not a whole chunk
    _index: int = -1
    _arrived: bytearray | None = None

    def add(self, index: int, data: bytes | memoryview, *, more: bool) -> bytes | memoryview | None:
        """Returns the chunk if this piece completes it, otherwise None. A chunk in one piece is returned without a copy.

        index: the chunk's number. more: whether the next piece belongs to the same chunk. Raises InvalidArgument if the piece
        belongs to another chunk than the pieces before it, or if a chunk is larger than CHUNK_BYTES.
        """
        if self._arrived is None:
            if not more:
                return data
            self._arrived, self._index, self.is_in_pieces = bytearray(), index, True
        if index != self._index:
            raise InvalidArgument(field="index", problem=f"is {index}, but the rest of chunk {self._index} is missing")
        self._arrived += data
        if len(self._arrived) > CHUNK_BYTES:
            raise InvalidArgument(
                field="data", problem=f"the pieces of chunk {index} are larger than {CHUNK_BYTES} bytes"
            )
        if more:
            return None
        chunk, self._arrived = memoryview(self._arrived), None
        return chunk
