"""Updates as files: checked before they count, averaged slice by slice. Blocking; the coordinator calls it in a thread.

Memory: two slices of every update at a time, however large the model. Files are read, not mapped: mapped pages would count as
the coordinator's own, and a file cut short under a map kills the process.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.errors.tree import NormTooLarge, NotFinite
from pluralllm.common.process.files import storage_errors, sync_data
from pluralllm.common.weights.chunks import HashingReader, HashingWriter, Manifest
from pluralllm.common.weights.layout import Layout, check_header
from pluralllm.common.weights.update_format import SLICE, UpdateFormat, read_slices, update_format
from pluralllm.common.words.ids import Digest
from pluralllm.common.words.spec import UpdateEncoding
from pluralllm.server.aggregation.arithmetic import Aggregator, ServerOptimizer

SHORT = 64  # values of one sum in float32: relative errors of 1e-6, of a norm that is held against a limit
SLICES_TO_FLUSH = 16  # 16 MiB
Slices = Iterator[Callable[[NDArray[np.float32]], None]]  # each fills a row with the next slice
FILLERS = 4  # threads that read, hash and decode side by side; all three let go of the interpreter's lock


def check_update(path: Path, form: UpdateFormat, max_delta_norm: float) -> float:
    """Names, shapes, dtypes, size, finiteness and L2 norm; returns the norm.

    Raises WrongLayout, NotFinite or NormTooLarge.
    """
    check_header(path, form.header, form.size_bytes)
    squares, bad, first_bad, position = 0.0, 0, -1, 0
    row = np.empty(SLICE, np.float32)
    with HashingReader(path) as file:
        file.read_into(np.empty(len(form.header), np.uint8))
        for fill in read_slices(form, file.read_into):
            values = row[: min(SLICE, form.layout.values - position)]
            fill(values)
            square = _square(values)
            if math.isfinite(square):
                squares += square
            elif (finite := np.isfinite(values)).all():  # numbers so large that their squares are not
                squares += float(np.square(values, dtype=np.float64).sum())
            else:
                bad += int((~finite).sum())
                first_bad = position + int(np.argmin(finite)) if first_bad < 0 else first_bad
            position += values.size
    if bad:
        raise NotFinite(tensor=form.layout.tensor_at(first_bad), count=bad)
    if math.sqrt(squares) > max_delta_norm:
        raise NormTooLarge(norm=math.sqrt(squares), limit=max_delta_norm)
    return math.sqrt(squares)


def _square(values: NDArray[np.float32]) -> float:
    """Squared L2 norm: short sums in float32, which vectorize, and their sum in float64."""
    whole = values[: values.size // SHORT * SHORT].reshape(-1, SHORT)
    rest = values[whole.size :]
    with np.errstate(over="ignore", invalid="ignore"):
        short = np.einsum("ij,ij->i", whole, whole)
        return float(short.sum(dtype=np.float64)) + float(rest @ rest)


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """A weights file and the digest it must have."""

    path: Path
    digest: Digest


def average(
    base: StoredWeights,
    moments: Sequence[StoredWeights | float],
    updates: Sequence[StoredWeights],
    weights: NDArray[np.float64],
    layout: Layout,
    aggregator: Aggregator,
    optimizer: ServerOptimizer,
    outs: Sequence[Path],
    encoding: UpdateEncoding = "fp32",
) -> tuple[Manifest, ...]:
    """Writes optimizer(base, aggregator(updates), moments) to `outs`: the next version, then each new moment. Their manifests.

    `moments`: files, or one number for all values before the first round; `outs` is one longer. `updates` in sorted client
    order, `weights` [clients] in the same order, `encoding` is theirs. Every byte read is hashed in the same pass: on a digest
    that does not fit, Corrupt is raised and `outs` are removed. What is written is not yet durable. Raises StorageFull.
    """
    whole, sent = update_format(layout, "fp32"), update_format(layout, encoding)
    sources = [(base, whole), *((moment, whole) for moment in moments), *((update, sent) for update in updates)]
    try:
        with ExitStack() as stack, storage_errors("the next model version"):
            readers: list[HashingReader] = []
            fillers = [_slices_of(source, form, stack, readers) for source, form in sources]
            writers = [stack.enter_context(HashingWriter(out, layout.size_bytes)) for out in outs]
            for writer in writers:
                writer.write(layout.header)
            threads = stack.enter_context(ThreadPoolExecutor(FILLERS))
            flushes: list[Future[None]] = []
            for start, values in _filled(fillers, layout.values, threads):  # (1 + moments + clients, slice)
                mean = aggregator(values[len(outs) :], weights)
                following, kept = optimizer(values[0], mean, values[1 : len(outs)])
                for writer, piece in zip(writers, (following, *kept), strict=True):
                    writer.write(np.ascontiguousarray(piece, dtype="<f4").data)
                if (start // SLICE + 1) % SLICES_TO_FLUSH == 0:  # the disk starts while more is computed
                    flushes += [threads.submit(sync_data, out) for out in outs]
            for reader in readers:
                reader.check()
            for flush in flushes:
                flush.result()  # a failure that was told here would not be told again when the file is published
            return tuple(writer.finish() for writer in writers)
    except BaseException:
        for out in outs:
            out.unlink(missing_ok=True)
        raise


def _filled(
    fillers: Sequence[Slices], values: int, threads: ThreadPoolExecutor
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Where each slice starts, and the slice of all files [files, slice]: the next is read while one is averaged."""
    pair = [np.empty((len(fillers), SLICE), np.float32) for _ in range(2)]

    def begin(start: int) -> tuple[int, NDArray[np.float32], list[Future[None]]]:
        rows = pair[start // SLICE % 2][:, : min(SLICE, values - start)]
        return start, rows, [threads.submit(_fill, filler, row) for filler, row in zip(fillers, rows, strict=True)]

    ahead = begin(0)
    for following in (*range(SLICE, values, SLICE), None):
        start, rows, filling = ahead
        for each in filling:
            each.result()
        if following is not None:
            ahead = begin(following)
        yield start, rows


def _fill(filler: Slices, row: NDArray[np.float32]) -> None:
    next(filler)(row)


def _slices_of(
    source: StoredWeights | float, form: UpdateFormat, stack: ExitStack, readers: list[HashingReader]
) -> Slices:
    """A filler for each slice of a file; of a number, what puts it everywhere."""
    if isinstance(source, float):
        return iter(lambda: lambda row: row.fill(source), None)
    reader = stack.enter_context(HashingReader(source.path, source.digest))
    readers.append(reader)
    reader.read_into(np.empty(len(form.header), np.uint8))  # its bytes are part of the digest
    return read_slices(form, reader.read_into)
