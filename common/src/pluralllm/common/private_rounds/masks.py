"""Masks: streams of numbers modulo 2^32 that are added to an update and cancel in the sum.

A stream is AES-256-CTR with a counter block of zeros, read as little-endian uint32. Number 0 belongs to the first number of the
tail, number 64 to the first value. A member adds the stream of its own key, and for each other dealer the stream of the pair's
key: the one with the smaller index adds it, the other one subtracts it.
Source: Bonawitz et al. 2017, section 4.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from pluralllm.common.private_rounds.statements import derived

PIECE = 64 * 1024  # numbers, that is 256 KiB: the stream and what it is added to fit into the processor's cache
BLOCK = 4  # numbers in one block of AES
BLOCKS = 1 << 128  # of the counter

Numbers = NDArray[np.uint32]
SignedKey = tuple[bytes, int]  # key of a stream, and 1 to add the stream, -1 to subtract it


def pair_stream_key(lower_half: bytes, upper_half: bytes, dealers_sha256: bytes, lower: int, upper: int) -> bytes:
    """Returns P = K(k_ij || k_ji, "pair stream", R2, i, j), the key of the stream of a pair.

    lower, upper: indices i < j of the two members. lower_half: k_ij, which i has dealt to j; upper_half: k_ji.
    Raises ValueError if the indices are not in order.
    """
    if lower >= upper:
        raise ValueError(f"the indices {lower}, {upper} are not in order")
    return derived(lower_half + upper_half, "pair stream", dealers_sha256, lower, upper)


def self_stream_key(own: bytes, dealers_sha256: bytes, index: int) -> bytes:
    """Returns S = K(b, "self stream", R2, i), the key of a member's own stream. own: b."""
    return derived(own, "self stream", dealers_sha256, index)


def masking_keys(
    own: bytes, halves: Mapping[int, tuple[bytes, bytes]], dealers_sha256: bytes, index: int
) -> list[SignedKey]:
    """Returns the keys of all streams that a member adds to its update.

    own: the member's secret b. halves: for each other dealer, by its index, the half that this member has dealt to it, and the
    half that it has dealt to this member. index: the member's own.
    """
    keys = [(self_stream_key(own, dealers_sha256, index), 1)]
    for other, (dealt, received) in sorted(halves.items()):
        keys.append(pair_key_with_sign(dealt, received, dealers_sha256, index, other))
    return keys


def pair_key_with_sign(dealt: bytes, received: bytes, dealers_sha256: bytes, index: int, other: int) -> SignedKey:
    """Returns the key of a pair's stream, and the sign with which the member `index` adds the stream.

    dealt: the half that `index` has dealt to `other`. received: the half that `other` has dealt to `index`.
    """
    if index < other:
        return pair_stream_key(dealt, received, dealers_sha256, index, other), 1
    return pair_stream_key(received, dealt, dealers_sha256, other, index), -1


def opposite(keys: Iterable[SignedKey]) -> list[SignedKey]:
    """Returns keys with the opposite signs: they take away what the given ones add."""
    return [(key, -sign) for key, sign in keys]


class MaskStreams:
    """The streams of some keys, added to one array after the other, from an offset on.

    Memory: two pieces of 256 KiB and the state of one cipher for each key.
    """

    def __init__(self, keys: Iterable[SignedKey], offset: int = 0) -> None:
        """Opens the streams. keys: of 32 bytes, with signs 1 or -1. offset: number of the first number that will be added."""
        self._streams = []
        block, skipped = divmod(offset, BLOCK)
        for key, sign in keys:
            if len(key) != 32 or sign not in (1, -1):
                raise ValueError("the key of a stream has 32 bytes and a sign of 1 or -1")
            counter = (block % BLOCKS).to_bytes(16, "big")
            stream = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor()
            stream.update(bytes(4 * skipped))
            self._streams.append((stream, np.add if sign == 1 else np.subtract))
        self._zeros = bytes(4 * PIECE)
        self._buffer = bytearray(4 * PIECE)

    def add_to(self, values: Numbers) -> None:
        """Adds the next numbers of all streams to an array, in place, modulo 2^32. Shape: values (n,), any n."""
        zeros, buffer = memoryview(self._zeros), memoryview(self._buffer)
        for start in range(0, values.size, PIECE):
            piece = values[start : start + PIECE]
            size = 4 * piece.size
            drawn = np.frombuffer(buffer[:size], "<u4")
            for stream, operation in self._streams:
                stream.update_into(zeros[:size], buffer[:size])
                operation(piece, drawn, out=piece)


def add_masks(values: Numbers, offset: int, keys: Iterable[SignedKey]) -> None:
    """Adds streams to an array in place, modulo 2^32. offset: number of the array's first number within the masked update."""
    MaskStreams(keys, offset).add_to(values)


def stream(key: bytes, offset: int, count: int) -> Numbers:
    """Returns `count` numbers of the stream of a key, from the number `offset` on."""
    values = np.zeros(count, np.uint32)
    add_masks(values, offset, [(key, 1)])
    return values
