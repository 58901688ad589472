"""Encodings of an update's numbers: float32 (4 bytes), bf16 (2 bytes), or int8 (1 byte) in blocks with one scale each.

The file is safetensors. With float32 and bf16, the file has the model's names and shapes. With int8, the file has two
tensors: `scales`, one float32 for each block of 1,024 values, and `values`, the numbers in layout order. The scales come
first, so a delta (the numbers of an update) can be decoded from front to back, slice by slice. The constant SLICE sets the
length of a slice; the last slice may be shorter.

A masked update of a private round (ring32) has two tensors of numbers modulo 2^32: `tail`, 64 numbers about the update, and
`values`, the delta's numbers in layout order. Each looks like a random number, so it is only ever added, never decoded.

bf16 rounds to nearest, ties to even. int8 rounds at random, so that the expected value of a rounded number is the number
itself (Alistarh et al. 2017, arXiv 1610.02132, section 3.1). A client adds the rounding error of one update to its next
update (error feedback: Karimireddy et al. 2019, arXiv 1901.09847, Algorithm 2).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, assert_never

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.weights.chunks import HashingWriter, Manifest
from pluralllm.common.weights.layout import Layout, header_of
from pluralllm.common.words.spec import UpdateEncoding

BLOCK = 1024  # values that share one scale
SLICE = 256 * BLOCK  # values that are encoded or decoded at a time
STEPS = 127  # int8 steps on each side of 0
VALUE_BYTES = {"fp32": 4, "bf16": 2, "int8": 1, "ring32": 4}
TAIL = 64  # numbers of a masked update that stand before its values

FileEncoding = UpdateEncoding | Literal["ring32"]

Floats = NDArray[np.float32]
ReadInto = Callable[
    [NDArray[np.uint8]], None
]  # fills an array with the next bytes of a file; raises if there are too few


@dataclass(frozen=True, slots=True)
class UpdateFormat:
    """The required form of an update's file, which depends on the model's layout and on the encoding that the run spec names."""

    layout: Layout  # the model's
    encoding: FileEncoding
    header: bytes

    @property
    def blocks(self) -> int:
        """Number of scales in the file: one for each block of 1,024 values with int8, otherwise 0."""
        return -(-self.layout.values // BLOCK) if self.encoding == "int8" else 0

    @property
    def size_bytes(self) -> int:
        """Size in bytes of the whole file, header included."""
        tail_bytes = 4 * TAIL if self.encoding == "ring32" else 0
        return len(self.header) + tail_bytes + 4 * self.blocks + VALUE_BYTES[self.encoding] * self.layout.values

    @property
    def plain(self) -> UpdateEncoding:
        """The encoding of an update that can be decoded. Raises TypeError for a masked one."""
        if self.encoding == "ring32":
            raise TypeError("a masked update is added, not decoded")
        return self.encoding


def update_format(layout: Layout, encoding: FileEncoding) -> UpdateFormat:
    """Returns the required form of an update's file, for the layout of the model and the encoding.

    The encoding is that of the run spec; in private rounds, it is ring32.
    """
    match encoding:
        case "fp32":
            return UpdateFormat(layout, encoding, layout.header)
        case "bf16":
            return UpdateFormat(layout, encoding, header_of((name, "BF16", shape) for name, shape in layout.tensors))
        case "int8":
            scales, values = -(-layout.values // BLOCK), layout.values
            return UpdateFormat(
                layout, encoding, header_of([("scales", "F32", (scales,)), ("values", "I8", (values,))])
            )
        case "ring32":
            values = layout.values
            return UpdateFormat(layout, encoding, header_of([("tail", "U32", (TAIL,)), ("values", "U32", (values,))]))
        case _:
            assert_never(encoding)


def write_masked(path: Path, form: UpdateFormat, pieces: Iterable[NDArray[np.uint32]]) -> Manifest:
    """Writes a masked update to a new file and returns its manifest. pieces: the tail, then the values, cut anywhere.

    The file does not survive a power loss until `process.files.publish` moves the file. Raises WrongLayout if the pieces have too
    few or too many numbers together, TypeError if the form is not ring32.
    """
    if form.encoding != "ring32":
        raise TypeError(f"{form.encoding} is not the encoding of a masked update")
    with HashingWriter(path, form.size_bytes) as writer:
        writer.write(form.header)
        for piece in pieces:
            writer.write(np.ascontiguousarray(piece, dtype="<u4").data)
        return writer.finish()


def write_update(path: Path, form: UpdateFormat, delta: Floats, rng: np.random.Generator) -> tuple[Manifest, Floats]:
    """Writes a delta to a new file. The file does not survive a power loss until `process.files.publish` moves the file.

    Shape: delta (n,), finite, with n values in layout order. rng: random stream for the rounding of int8.
    Returns the file's manifest, and the delta with its rounding errors, as a reader will decode it.
    """
    read = np.empty_like(delta)
    scales = scales_of(delta, form.plain)
    with HashingWriter(path, form.size_bytes) as writer:
        writer.write(form.header)
        writer.write(scales.astype("<f4").data)
        for raw in _encoded(delta, scales, form.plain, rng, read):
            writer.write(raw.data)
        return writer.finish(), read


def as_read(delta: Floats, encoding: UpdateEncoding, rng: np.random.Generator) -> Floats:
    """Returns the delta with the rounding errors of the encoding, as a reader would decode it. No file is written."""
    read = np.empty_like(delta)
    for _ in _encoded(delta, scales_of(delta, encoding), encoding, rng, read):
        pass
    return read


def _encoded(
    delta: Floats, scales: Floats, encoding: UpdateEncoding, rng: np.random.Generator, read: Floats
) -> Iterator[NDArray[np.uint8]]:
    """Encodes a delta and yields the bytes slice by slice. Fills the array `read` with the values that a reader will decode."""
    for start in range(0, delta.size, SLICE):
        values, steps = slice(start, start + SLICE), scales[start // BLOCK : (start + SLICE) // BLOCK]
        raw = encode(delta[values], steps, encoding, rng)
        decode(raw, steps, encoding, read[values])
        yield raw


class SliceReader:
    """Reads and decodes the numbers of an update, slice by slice, from front to back.

    The reader keeps the scales of the whole update in memory. Of the numbers it keeps nothing between two slices, because a
    thousand readers may be open at the same time.
    """

    def __init__(self, form: UpdateFormat, read_into: ReadInto) -> None:
        """Reads the scales of the update.

        read_into: fills an array with the next bytes of the file; its first call gives the bytes after the header.
        """
        self._encoding = form.plain
        self._read_into = read_into
        self._scales = np.empty(form.blocks, "<f4")
        self._block = 0  # the first block of the next slice
        read_into(self._scales.view(np.uint8))

    def read(self, row: Floats) -> None:
        """Fills an array with the numbers of the next slice of the update.

        row: the array to fill; its length is that of the slice. The length must be a multiple of BLOCK; only the last slice may
        end elsewhere.
        """
        if self._encoding == "fp32":
            self._read_into(row.view(np.uint8))
            return
        raw = np.empty(row.size * VALUE_BYTES[self._encoding], np.uint8)
        self._read_into(raw)
        following = self._block + -(-row.size // BLOCK)
        decode(raw, self._scales[self._block : following], self._encoding, row)
        self._block = following


def scales_of(delta: Floats, encoding: UpdateEncoding) -> Floats:
    """Returns the scale of each int8 block: the value of one int8 step, chosen so that the block's largest number becomes 127.

    Shape: (blocks,) for int8, with one block for each 1,024 values; (0,) for the other encodings.
    """
    if encoding != "int8":
        return np.empty(0, np.float32)
    starts = np.arange(0, delta.size, BLOCK)
    largest = np.maximum.reduceat(np.abs(delta), starts)
    return (largest / np.float32(STEPS)).astype(np.float32)


def encode(values: Floats, scales: Floats, encoding: UpdateEncoding, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Returns the bytes of a slice of numbers. The slice must begin where a block begins.

    scales: the scales of the slice's blocks, for int8. rng: random stream for the rounding of int8.
    """
    match encoding:
        case "fp32":
            return values.astype("<f4").view(np.uint8)
        case "bf16":
            bits = values.view(np.uint32)
            rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # half a step, to even
            halves: NDArray[np.uint16] = (rounded >> np.uint32(16)).astype("<u2")
            return halves.view(np.uint8)
        case "int8":
            steps = np.repeat(np.where(scales > 0, scales, np.float32(1)), BLOCK)[: values.size]
            drawn = np.floor(values / steps + rng.random(values.size, dtype=np.float32))
            bytes_: NDArray[np.int8] = np.clip(drawn, -STEPS, STEPS).astype(np.int8)
            return bytes_.view(np.uint8)
        case _:
            assert_never(encoding)


def decode(raw: NDArray[np.uint8], scales: Floats, encoding: UpdateEncoding, out: Floats) -> None:
    """Decodes the bytes of a slice into the array `out`. scales: the scales of the slice's blocks, for int8."""
    match encoding:
        case "fp32":
            out[:] = raw.view("<f4")
        case "bf16":
            np.left_shift(raw.view("<u2"), 16, out=out.view(np.uint32), dtype=np.uint32, casting="unsafe")
        case "int8":
            # Scales from the network may be infinite or NaN. The check of an update finds the numbers that come of it.
            with np.errstate(over="ignore", invalid="ignore"):
                np.multiply(raw.view(np.int8), np.repeat(scales, BLOCK)[: out.size], out=out)
        case _:
            assert_never(encoding)
