"""Weights as files: safetensors with one float32 payload, cut into chunks, addressed by the sha256 of the chunk hashes.

A model and its updates have byte-identical headers, so "the same names, shapes and dtypes" is one comparison, and the payload is
one flat float32 array that may be memory-mapped and cut anywhere. Format: safetensors 0.4+ (8-byte header length, JSON, data).
"""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from pluralllm.common.errors import DigestMismatch, OverLimit, WrongLayout
from pluralllm.common.ids import Digest

CHUNK_BYTES = (
    1024 * 1024
)  # one constant: well under every message limit, and 100,000 hashes still fit one manifest message
MAX_HEADER_BYTES = 1024 * 1024
HASH_BYTES = 32


@dataclass(frozen=True, slots=True)
class Manifest:
    """A blob as a list of chunks."""

    digest: Digest  # sha256 over chunk_hashes, concatenated
    size_bytes: int
    chunk_hashes: tuple[bytes, ...]  # raw sha256 of each CHUNK_BYTES (the last may be shorter)

    def __repr__(self) -> str:
        return f"Manifest({self.digest[:12]}, {self.size_bytes} bytes)"

    @property
    def chunks(self) -> int:
        return len(self.chunk_hashes)

    def chunk_size(self, index: int) -> int:
        """Bytes of one chunk."""
        return min(CHUNK_BYTES, self.size_bytes - index * CHUNK_BYTES)


def digest_of(chunk_hashes: Iterable[bytes]) -> Digest:
    """A blob's address from its chunk hashes, so that no byte is hashed twice."""
    return Digest(hashlib.sha256(b"".join(chunk_hashes)).hexdigest())


def checked_manifest(
    digest: str, size_bytes: int, chunk_bytes: int, chunk_hashes: Sequence[bytes], limit: int
) -> Manifest:
    """A stranger's manifest, checked. Raises OverLimit, DigestMismatch."""
    if not 0 < size_bytes <= limit:
        raise OverLimit(what="size_bytes of the blob", got=size_bytes, limit=limit)
    if chunk_bytes != CHUNK_BYTES:
        raise OverLimit(what="chunk_bytes", got=chunk_bytes, limit=CHUNK_BYTES)
    wanted = -(-size_bytes // CHUNK_BYTES)
    if len(chunk_hashes) != wanted or any(len(piece) != HASH_BYTES for piece in chunk_hashes):
        raise OverLimit(what="number of 32-byte chunk hashes", got=len(chunk_hashes), limit=wanted)
    if digest_of(chunk_hashes) != digest:
        raise DigestMismatch(what="the manifest", expected=digest, got=digest_of(chunk_hashes))
    return Manifest(Digest(digest), size_bytes, tuple(chunk_hashes))


def manifest_of(path: Path) -> Manifest:
    """Reads a file once and lists its chunks. Memory: one chunk."""
    with path.open("rb") as file:
        hashes = tuple(hashlib.sha256(chunk).digest() for chunk in iter(lambda: file.read(CHUNK_BYTES), b""))
    return Manifest(digest_of(hashes), path.stat().st_size, hashes)


def keep_good_chunks(part: Path, manifest: Manifest) -> int:
    """How many chunks at the start of a partial file are good; makes the file if there is none, cuts off what follows them."""
    part.touch()
    good = 0
    with part.open("r+b") as file:
        for index, expected in enumerate(manifest.chunk_hashes):
            if hashlib.sha256(file.read(manifest.chunk_size(index))).digest() != expected:
                break
            good += 1
        file.truncate(min(good * CHUNK_BYTES, manifest.size_bytes))
    return good


def missing_ranges(missing: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Sorted chunk numbers as (first, last) ranges."""
    ranges: list[tuple[int, int]] = []
    for index in sorted(missing):
        if ranges and index == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], index)
        else:
            ranges.append((index, index))
    return tuple(ranges)


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
    entries: dict[str, object] = {}
    offset = 0
    for name, shape in ordered:
        end = offset + 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format pads with spaces, so that the payload is aligned
    return Layout(len(text).to_bytes(8, "little") + text, ordered)


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
        layout = layout_of((name, tuple(entry["shape"])) for name, entry in entries.items() if name != "__metadata__")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise WrongLayout(problem=f"its header cannot be read ({error})") from error
    if layout.header != header or path.stat().st_size != layout.size_bytes:
        raise WrongLayout(problem="its tensors are not float32, sorted by name and contiguous")
    return layout


def check_layout(path: Path, layout: Layout) -> None:
    """Compares a stranger's file with the run's layout. Raises WrongLayout naming the first difference."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(len(layout.header))
    if header == layout.header and size == layout.size_bytes:
        return
    try:
        with safe_open(path, framework="numpy") as opened:
            got = {}
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                piece = opened.get_slice(name)
                got[name] = (str(piece.get_dtype()), tuple(piece.get_shape()))
    except (SafetensorError, OSError, ValueError) as error:
        raise WrongLayout(problem=f"not a valid safetensors file ({error})") from error
    wanted = {name: ("F32", shape) for name, shape in layout.tensors}
    for name in sorted(wanted.keys() | got.keys()):
        if wanted.get(name) != got.get(name):
            raise WrongLayout(
                problem=f"tensor {name} is {got.get(name, 'absent')}, expected {wanted.get(name, 'absent')}"
            )
    raise WrongLayout(problem="tensors are in another order, or the file holds metadata")


def flat_values(path: Path, layout: Layout) -> NDArray[np.float32]:
    """The payload as one read-only memory-mapped array, shape [layout.values]."""
    return np.memmap(path, dtype="<f4", mode="r", offset=len(layout.header), shape=(layout.values,))


class WeightsWriter:
    """Writes header and payload (flat pieces, in order), hashing on the way. Not yet durable: see files.publish."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self._layout = layout
        self._hashes: list[bytes] = []
        self._rest = bytearray()
        self._file = path.open("wb")
        self._write(layout.header)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, values: NDArray[np.float32]) -> None:
        """The next values, shape [any]."""
        self._write(np.ascontiguousarray(values, dtype="<f4").tobytes())

    def finish(self) -> Manifest:
        """Closes the file. Raises WrongLayout if it is not of the layout's size."""
        size = self._file.tell()
        self._file.close()
        if self._rest:
            self._hashes.append(hashlib.sha256(self._rest).digest())
        if size != self._layout.size_bytes:
            raise WrongLayout(problem=f"{size} bytes were written, the layout has {self._layout.size_bytes}")
        return Manifest(digest_of(self._hashes), size, tuple(self._hashes))

    def _write(self, piece: bytes) -> None:
        self._file.write(piece)
        self._rest += piece
        while len(self._rest) >= CHUNK_BYTES:
            self._hashes.append(hashlib.sha256(memoryview(self._rest)[:CHUNK_BYTES]).digest())
            del self._rest[:CHUNK_BYTES]


def write_weights(path: Path, layout: Layout, values: Iterable[NDArray[np.float32]]) -> Manifest:
    """A whole weights file from its flat pieces, in order. Raises WrongLayout if they are too few or too many."""
    with WeightsWriter(path, layout) as writer:
        for piece in values:
            writer.write(piece)
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
