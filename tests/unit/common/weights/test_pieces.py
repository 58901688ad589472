"""Chunks travel in pieces that fit the link, and arrive as the same chunks."""

import itertools

import pytest

from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.weights.chunks import CHUNK_BYTES
from pluralllm.common.weights.pieces import (
    PIECE_BYTES,
    QUICK_S,
    SLOW_S,
    SLOWEST_LINK_BYTES_S,
    UNMEASURED_PIECES,
    Pieces,
    PieceSizes,
    transfer_s,
)

CHUNK = bytes(range(256)) * 4096
HTTP2_FIRST_WINDOW_BYTES = 64 * 1024


class Link:
    """A link that takes so many bytes per second, after a first window that it takes at once. It is also the clock."""

    def __init__(self, bytes_s: float, window_bytes: int = HTTP2_FIRST_WINDOW_BYTES) -> None:
        self._bytes_s, self._window_bytes, self.now_s = bytes_s, window_bytes, 0.0
        self.sizes: list[int] = []

    def take(self, size_bytes: int) -> None:
        self.sizes.append(size_bytes)
        free = min(self._window_bytes, size_bytes)
        self._window_bytes -= free
        self.now_s += (size_bytes - free) / self._bytes_s


def send(link: Link, sizes: PieceSizes) -> None:
    for piece, _ in sizes.cut(memoryview(CHUNK)):
        link.take(len(piece))


@pytest.mark.parametrize("kib_s", [16, 32, 64])
def test_on_a_slow_link_no_piece_takes_much_longer_than_a_second(kib_s: int) -> None:
    link = Link(kib_s * 1024)
    sizes = PieceSizes(lambda: link.now_s)
    for _ in range(3):
        send(link, sizes)
    assert max(link.sizes) <= max(PIECE_BYTES, kib_s * 1024 * SLOW_S)
    assert sum(link.sizes) == 3 * CHUNK_BYTES


def test_on_a_fast_link_chunks_soon_go_in_one_piece() -> None:
    link = Link(100e6)
    sizes = PieceSizes(lambda: link.now_s)
    send(link, sizes)
    assert len(link.sizes) == UNMEASURED_PIECES + 5
    send(link, sizes)
    send(link, sizes)
    assert link.sizes[-1] == CHUNK_BYTES


def test_a_link_that_becomes_slow_gets_smaller_pieces() -> None:
    link = Link(SLOWEST_LINK_BYTES_S, window_bytes=0)
    sizes = PieceSizes(lambda: link.now_s, CHUNK_BYTES)
    for _ in range(7):
        send(link, sizes)
    assert link.sizes[0] == CHUNK_BYTES
    assert link.sizes[-2] == PIECE_BYTES


@pytest.mark.parametrize(
    ("took_s", "before", "after"),
    [
        (QUICK_S - 0.001, 2 * PIECE_BYTES, 4 * PIECE_BYTES),
        (QUICK_S, 2 * PIECE_BYTES, 2 * PIECE_BYTES),
        (SLOW_S, 2 * PIECE_BYTES, 2 * PIECE_BYTES),
        (SLOW_S + 0.001, 2 * PIECE_BYTES, PIECE_BYTES),
        (SLOW_S + 0.001, PIECE_BYTES, PIECE_BYTES),
        (0.0, CHUNK_BYTES, CHUNK_BYTES),
    ],
)
def test_the_size_follows_the_time_of_the_last_piece(took_s: float, before: int, after: int) -> None:
    times = itertools.count(0.0, took_s)
    sizes = PieceSizes(lambda: next(times), before)
    list(sizes.cut(memoryview(b"x")))
    assert sizes.next_bytes == after


@pytest.mark.parametrize(("asked", "used"), [(-1, PIECE_BYTES), (1, PIECE_BYTES), (2**31 - 1, CHUNK_BYTES)])
def test_a_first_size_out_of_range_becomes_the_nearest_allowed_one(asked: int, used: int) -> None:
    assert PieceSizes(lambda: 0.0, asked).next_bytes == used


def test_the_pieces_of_a_chunk_make_the_chunk() -> None:
    pieces, sizes = Pieces(), PieceSizes(lambda: 0.0)
    arrived = [pieces.add(3, piece, more=more) for piece, more in sizes.cut(memoryview(CHUNK))]
    assert arrived[:-1] == [None] * (len(arrived) - 1)
    assert arrived[-1] == CHUNK
    assert pieces.is_in_pieces
    assert pieces.add(4, CHUNK, more=False) is CHUNK


def test_a_chunk_in_one_piece_is_not_copied_and_proves_no_pieces() -> None:
    pieces = Pieces()
    assert pieces.add(0, CHUNK, more=False) is CHUNK
    assert not pieces.is_in_pieces


def test_a_piece_of_another_chunk_is_refused() -> None:
    pieces = Pieces()
    pieces.add(3, b"x", more=True)
    with pytest.raises(InvalidArgument, match="index: is 4, but the rest of chunk 3 is missing"):
        pieces.add(4, b"x", more=False)


def test_pieces_hold_at_most_one_chunk() -> None:
    pieces = Pieces()
    assert pieces.add(0, CHUNK, more=True) is None
    with pytest.raises(InvalidArgument, match=f"larger than {CHUNK_BYTES} bytes"):
        pieces.add(0, b"x", more=True)


def test_a_piece_takes_a_second_on_the_slowest_link() -> None:
    assert transfer_s(PIECE_BYTES) == 1.0
