"""Weights as safetensors files with one float32 payload; chunks.py cuts these files into chunks and computes their digests.

A model and its float32 updates have byte-identical headers, so one comparison shows that names, shapes and dtypes agree. The
payload is one flat float32 array, which may be memory-mapped and cut anywhere. Format: safetensors 0.4+ (8-byte header length,
JSON, data).
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
MAX_VALUES = 2**40  # in one tensor: far more than any model here may have
SHOWN_CHARACTERS = 100  # of a file's own words in an error, which others keep and send on
DTYPE_BYTES = {"F32": 4, "BF16": 2, "I8": 1, "U32": 4}


@dataclass(frozen=True, slots=True)
class Layout:
    """Names and shapes of a model's tensors in file order, with the exact bytes of the file's header."""

    header: bytes  # with its 8-byte length
    tensors: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def values(self) -> int:
        """Number of float32 values in all tensors together."""
        return sum(math.prod(shape) for _, shape in self.tensors)

    @property
    def size_bytes(self) -> int:
        """Size in bytes of a file with this layout, header included."""
        return len(self.header) + 4 * self.values

    def tensor_at(self, position: int) -> str:
        """Returns the name of the tensor that contains one value of the flat payload. position: index of the value.

        Raises IndexError if the payload has fewer values.
        """
        for name, shape in self.tensors:
            position -= math.prod(shape)
            if position < 0:
                return name
        raise IndexError(position)


def layout_of(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> Layout:
    """Returns the layout of float32 tensors with these names and shapes. The layout sorts the tensors by name."""
    ordered = tuple(sorted(tensors))
    return Layout(header_of((name, "F32", shape) for name, shape in ordered), ordered)


def rewards_layout(candidates: int) -> Layout:
    """Returns the layout of a file with rewards: one tensor `rewards` with one number for each candidate of a batch.

    One client's rewards and the combined rewards of all clients have the same layout.
    """
    return layout_of([("rewards", (candidates,))])


def header_of(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """Returns the bytes of a safetensors header.

    tensors: name, dtype (F32, BF16, I8 or U32) and shape of each tensor, in file order.
    """
    entries: dict[str, object] = {}
    offset = 0
    for name, dtype, shape in tensors:
        end = offset + DTYPE_BYTES[dtype] * math.prod(shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format pads with spaces to align the payload
    return len(text).to_bytes(8, "little") + text


def read_header(file: IO[bytes]) -> bytes:
    """Returns the start of a safetensors file: the 8 bytes that give the header's length, and then the header.

    Raises WrongLayout if the file has fewer than 8 bytes, or if the length is above MAX_HEADER_BYTES.
    """
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > MAX_HEADER_BYTES:
        raise WrongLayout(problem="not a safetensors file")
    return start + file.read(length)


def read_layout(path: Path) -> Layout:
    """Returns the layout of a model file that this project has written.

    Raises WrongLayout if the header cannot be read, or if the tensors are not float32, sorted by name and contiguous.
    """
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
    """Checks one entry of a header, which may come over the network. Returns the name and the shape of the entry's tensor.

    The check is needed because a malicious header may give 1.0, true, -1 or "x" as a size. In Python, "x" times a large
    number is a text that fills the memory.
    Raises ValueError, TypeError or KeyError for a bad entry.
    """
    name.encode()  # fails for half of a surrogate pair
    shape = tuple(entry["shape"])
    if len(shape) > MAX_DIMENSIONS or not all(type(size) is int and 0 <= size <= MAX_VALUES for size in shape):
        raise ValueError("a shape is at most 8 whole numbers")
    if math.prod(max(1, size) for size in shape) > MAX_VALUES:
        raise ValueError("a tensor is too large")
    return name, shape


def check_header(path: Path, header: bytes, size_bytes: int) -> None:
    """Checks that a file from the network has the expected header and size.

    header: the bytes with which the file must begin. size_bytes: the size that the file must have.
    Raises WrongLayout, which names the first difference, if a check fails.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(header))
    if start == header and size == size_bytes:
        return
    present, required = _tensors_in(path), json.loads(header[8:])
    for name in sorted(required.keys() | present.keys()):
        expected = (required[name]["dtype"], tuple(required[name]["shape"])) if name in required else "absent"
        if present.get(name, "absent") != expected:
            shown = str(present.get(name, "absent"))[:SHOWN_CHARACTERS]
            raise WrongLayout(problem=f"tensor {name[:SHOWN_CHARACTERS]} is {shown}, expected {expected}")
    raise WrongLayout(problem="tensors are in another order, or the file holds metadata")


def _tensors_in(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Returns dtype and shape of each tensor in a file, by name. Raises WrongLayout if the file is not valid safetensors."""
    try:
        with safe_open(path, framework="numpy") as opened:
            pieces = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
            return {name: (str(piece.get_dtype()), tuple(piece.get_shape())) for name, piece in pieces.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise WrongLayout(problem=f"not a valid safetensors file ({str(error)[:SHOWN_CHARACTERS]})") from error


def flat_values(path: Path, layout: Layout) -> NDArray[np.float32]:
    """Maps the payload of a file into memory as one read-only float32 array. Shape: (layout.values,)."""
    return np.memmap(path, dtype="<f4", mode="r", offset=len(layout.header), shape=(layout.values,))


def write_weights(path: Path, layout: Layout, values: Iterable[NDArray[np.float32]]) -> Manifest:
    """Writes a weights file and returns its manifest. values: pieces of the flat payload, in order.

    Raises WrongLayout if the pieces have too few or too many values together.
    """
    with HashingWriter(path, layout.size_bytes) as writer:
        writer.write(layout.header)
        for piece in values:
            writer.write(np.ascontiguousarray(piece, dtype="<f4").data)
        return writer.finish()


def tensors_of(path: Path) -> dict[str, NDArray[np.float32]]:
    """Returns all tensors of a model file by name, as views of one read-only memory map.

    Raises WrongLayout if the file is not a model file that this project has written.
    """
    layout = read_layout(path)
    flat = flat_values(path, layout)
    tensors: dict[str, NDArray[np.float32]] = {}
    offset = 0
    for name, shape in layout.tensors:
        tensors[name] = flat[offset : offset + math.prod(shape)].reshape(shape)
        offset += math.prod(shape)
    return tensors
