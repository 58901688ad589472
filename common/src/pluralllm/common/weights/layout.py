"""Weights as files: safetensors with one float32 payload, cut into chunks, addressed by the sha256 of the chunk hashes.

A model and its updates have byte-identical headers, so "the same names, shapes and dtypes" is one comparison, and the payload is
one flat float32 array that may be memory-mapped and cut anywhere. Format: safetensors 0.4+ (8-byte header length, JSON, data).
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from pluralllm.common.errors.tree import WrongLayout
from pluralllm.common.weights.chunks import HashingWriter, Manifest

MAX_HEADER_BYTES = 1024 * 1024
MAX_DIMENSIONS = 8
MAX_VALUES = 2**40  # of a tensor: far above what any model here may have
DTYPE_BYTES = {"F32": 4, "BF16": 2, "I8": 1}


@dataclass(frozen=True, slots=True)
class Layout:
    """Names and shapes of a model's tensors, in file order, and the exact header bytes that say so."""

    header: bytes  # the 8-byte length included
    tensors: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def values(self) -> int:
        """How many float32 numbers there are."""
        return sum(math.prod(shape) for _, shape in self.tensors)

    @property
    def size_bytes(self) -> int:
        return len(self.header) + 4 * self.values

    def tensor_at(self, position: int) -> str:
        """Name of the tensor that holds the flat position."""
        for name, shape in self.tensors:
            position -= math.prod(shape)
            if position < 0:
                return name
        raise IndexError(position)


def layout_of(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> Layout:
    """The layout of float32 tensors, sorted by name."""
    ordered = tuple(sorted(tensors))
    return Layout(header_of((name, "F32", shape) for name, shape in ordered), ordered)


def rewards_layout(candidates: int) -> Layout:
    """One client's rewards of a batch, or their aggregate: as many numbers as there are candidates."""
    return layout_of([("rewards", (candidates,))])


def header_of(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """The header of tensors that follow one another: names, dtypes (F32, BF16, I8) and shapes, in order."""
    entries: dict[str, object] = {}
    offset = 0
    for name, dtype, shape in tensors:
        end = offset + DTYPE_BYTES[dtype] * math.prod(shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format pads with spaces, so that the payload is aligned
    return len(text).to_bytes(8, "little") + text


def read_header(file: IO[bytes]) -> bytes:
    """The header bytes at the start of a safetensors file. Raises WrongLayout."""
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > MAX_HEADER_BYTES:
        raise WrongLayout(problem="not a safetensors file")
    return start + file.read(length)


def read_layout(path: Path) -> Layout:
    """The layout of a model file written by this project. Raises WrongLayout."""
    with path.open("rb") as file:
        header = read_header(file)
    try:
        entries = json.loads(header[8:])
        layout = layout_of(_checked(name, entry) for name, entry in entries.items() if name != "__metadata__")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WrongLayout(problem=f"its header cannot be read ({error})") from error
    if layout.header != header or path.stat().st_size != layout.size_bytes:
        raise WrongLayout(problem="its tensors are not float32, sorted by name and contiguous")
    return layout


def _checked(name: str, entry: dict[str, Any]) -> tuple[str, tuple[int, ...]]:
    """A name and a shape out of a stranger's JSON, where 1.0, true, -1 and "x" may stand for a size: the product of the last
    and a large number is a text that fills the memory. Raises ValueError, TypeError, KeyError.
    """
    name.encode()  # half of a surrogate pair is no name
    shape = tuple(entry["shape"])
    if len(shape) > MAX_DIMENSIONS or not all(type(size) is int and 0 <= size <= MAX_VALUES for size in shape):
        raise ValueError("a shape is at most 8 whole numbers")
    if math.prod(max(1, size) for size in shape) > MAX_VALUES:
        raise ValueError("a tensor is too large")
    return name, shape


def check_header(path: Path, header: bytes, size_bytes: int) -> None:
    """Compares a stranger's file with the header and size it must have. Raises WrongLayout naming the first difference."""
    size = path.stat().st_size
    with path.open("rb") as file:
        got = file.read(len(header))
    if got == header and size == size_bytes:
        return
    found, wanted = _tensors_in(path), json.loads(header[8:])
    for name in sorted(wanted.keys() | found.keys()):
        expected = (wanted[name]["dtype"], tuple(wanted[name]["shape"])) if name in wanted else "absent"
        if found.get(name, "absent") != expected:
            raise WrongLayout(problem=f"tensor {name} is {found.get(name, 'absent')}, expected {expected}")
    raise WrongLayout(problem="tensors are in another order, or the file holds metadata")


def _tensors_in(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    try:
        with safe_open(path, framework="numpy") as opened:
            pieces = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
            return {name: (str(piece.get_dtype()), tuple(piece.get_shape())) for name, piece in pieces.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise WrongLayout(problem=f"not a valid safetensors file ({error})") from error


def flat_values(path: Path, layout: Layout) -> NDArray[np.float32]:
    """The payload as one read-only memory-mapped array, shape [layout.values]."""
    return np.memmap(path, dtype="<f4", mode="r", offset=len(layout.header), shape=(layout.values,))


def write_weights(path: Path, layout: Layout, values: Iterable[NDArray[np.float32]]) -> Manifest:
    """A whole weights file from its flat pieces, in order. Raises WrongLayout if they are too few or too many."""
    with HashingWriter(path, layout.size_bytes) as writer:
        writer.write(layout.header)
        for piece in values:
            writer.write(np.ascontiguousarray(piece, dtype="<f4").data)
        return writer.finish()


def tensors_of(path: Path) -> dict[str, NDArray[np.float32]]:
    """All tensors of a model file by name, as views of one read-only memory map."""
    layout = read_layout(path)
    flat = flat_values(path, layout)
    found: dict[str, NDArray[np.float32]] = {}
    offset = 0
    for name, shape in layout.tensors:
        found[name] = flat[offset : offset + math.prod(shape)].reshape(shape)
        offset += math.prod(shape)
    return found
