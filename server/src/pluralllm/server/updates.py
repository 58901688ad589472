"""Updates as files: checked before they count, averaged chunk by chunk. Blocking; the coordinator calls it in a thread.

Memory: one chunk of every update at a time, however large the model. Files are read, not mapped: mapped pages would count as
the coordinator's own, and a file cut short under a map kills the process.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.errors import Corrupt, NormTooLarge, NotFinite
from pluralllm.common.files import storage_errors
from pluralllm.common.ids import Digest
from pluralllm.common.weights import CHUNK_BYTES, Layout, Manifest, WeightsWriter, check_layout, digest_of
from pluralllm.server.aggregate import Aggregator, ServerOptimizer


def check_update(path: Path, layout: Layout, max_delta_norm: float) -> float:
    """Names, shapes, dtypes, size, finiteness and L2 norm; returns the norm.

    Raises WrongLayout, NotFinite or NormTooLarge.
    """
    check_layout(path, layout)
    squares, bad, first_bad, position = 0.0, 0, -1, 0
    with path.open("rb") as file:
        file.seek(len(layout.header))
        while data := file.read(CHUNK_BYTES):
            values = np.frombuffer(data, dtype="<f4")
            finite = np.isfinite(values)
            if not finite.all():
                bad += int((~finite).sum())
                first_bad = position + int(np.argmin(finite)) if first_bad < 0 else first_bad
            else:
                exact = values.astype(np.float64)
                squares += float(exact @ exact)
            position += len(values)
    if bad:
        raise NotFinite(tensor=layout.tensor_at(first_bad), count=bad)
    if math.sqrt(squares) > max_delta_norm:
        raise NormTooLarge(norm=math.sqrt(squares), limit=max_delta_norm)
    return math.sqrt(squares)


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """A weights file and the digest it must have."""

    path: Path
    digest: Digest


class _Constant:
    """Stands for a file whose every value is the same: a moment before the first round."""

    def __init__(self, value: float) -> None:
        self._value = value

    def read_into(self, row: NDArray[np.uint8]) -> None:
        row.view("<f4")[:] = self._value

    def check(self) -> None:
        """There is nothing that could be corrupt."""


class _Reader:
    """Reads a blob chunk by chunk into a row, hashing what it reads."""

    def __init__(self, file: FileIO, stored: StoredWeights) -> None:
        self._file = file
        self._stored = stored
        self._hashes: list[bytes] = []

    def read_into(self, row: NDArray[np.uint8]) -> None:
        count = self._file.readinto(row.data) or 0
        self._hashes.append(hashlib.sha256(row.data[:count]).digest())

    def check(self) -> None:
        got = digest_of(self._hashes)
        if got != self._stored.digest:
            raise Corrupt(what=f"stored weights {self._stored.path.name}", expected=self._stored.digest, got=got)


def average(
    base: StoredWeights,
    moments: Sequence[StoredWeights | float],
    updates: Sequence[StoredWeights],
    weights: NDArray[np.float64],
    layout: Layout,
    aggregator: Aggregator,
    optimizer: ServerOptimizer,
    outs: Sequence[Path],
) -> tuple[Manifest, ...]:
    """Writes optimizer(base, aggregator(updates), moments) to `outs`: the next version, then each new moment. Their manifests.

    `moments`: files, or one number for all values before the first round; `outs` is one longer. `updates` in sorted client
    order, `weights` [clients] in the same order. Every byte read is hashed in the same pass: on a digest that does not fit,
    Corrupt is raised and `outs` are removed. What is written is not yet durable. Raises StorageFull.
    """
    try:
        with ExitStack() as stack, storage_errors("the next model version"):
            readers = [
                _Reader(stack.enter_context(FileIO(source.path)), source)
                if isinstance(source, StoredWeights)
                else _Constant(source)
                for source in (base, *moments, *updates)
            ]
            writers = [stack.enter_context(WeightsWriter(out, layout)) for out in outs]
            for values in _slices(readers, layout):  # (1 + moments + clients, slice)
                mean = aggregator(values[len(outs) :], weights)
                following, kept = optimizer(values[0], mean, values[1 : len(outs)])
                for writer, piece in zip(writers, (following, *kept), strict=True):
                    writer.write(piece)
            for reader in readers:
                reader.check()
            return tuple(writer.finish() for writer in writers)
    except BaseException:
        for out in outs:
            out.unlink(missing_ok=True)
        raise


def _slices(readers: Sequence[_Reader | _Constant], layout: Layout) -> Iterator[NDArray[np.float32]]:
    """The same slice of every file, shape [readers, slice], one after the other; each overwrites the one before."""
    rows = np.zeros((len(readers), CHUNK_BYTES), dtype=np.uint8)
    for start in range(0, layout.size_bytes, CHUNK_BYTES):
        size = min(CHUNK_BYTES, layout.size_bytes - start)
        for reader, row in zip(readers, rows, strict=True):
            reader.read_into(row[:size])
        skip = max(0, len(layout.header) - start)  # the header is in the first chunk or chunks
        if skip >= size:
            continue
        yield rows[:, skip:size].view("<f4")
