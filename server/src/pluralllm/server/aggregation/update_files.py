"""Checks the files of updates and averages them slice by slice. The functions block; the coordinator calls them in a thread.

A slice is a range of the model's values.
Memory holds one slice of twice AT_ONCE updates at a time, however large the model is and however many updates there are: some
updates are read while the ones before them are added. A rule that needs all updates of a slice at once gets them in narrower
slices, so it needs no more memory. Files are read, not mapped into memory. Mapped pages would count as the
coordinator's own memory, and the process would die if a mapped file became shorter.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.errors.tree import NormTooLarge, NotFinite
from pluralllm.common.process.files import storage_errors, sync_data
from pluralllm.common.weights.chunks import HashingReader, HashingWriter, Manifest
from pluralllm.common.weights.layout import Layout, check_header
from pluralllm.common.weights.server_optimizer import ServerOptimizer
from pluralllm.common.weights.stored_weights import EqualValues, StoredWeights, open_source
from pluralllm.common.weights.update_format import SLICE, SliceReader, UpdateFormat, update_format
from pluralllm.common.words.spec import UpdateEncoding
from pluralllm.server.aggregation.aggregator import Combine
from pluralllm.server.aggregation.arithmetic import add_weighted, mean_of, shorten
from pluralllm.server.aggregation.rules import COLUMNS, add_squared_distances

SHORT = 64  # values in one float32 sum; the relative error of 1e-6 is small enough for a comparison with a limit
NORM_DIGITS = 6  # significant ones; the last bits of a sum differ between machines
SLICES_TO_FLUSH = 16  # that is 16 MiB
AT_ONCE = 32  # updates of which memory holds a slice, that is 1 MiB each; as many more are read meanwhile
READERS = 4  # threads that read, hash and decode in parallel; all three release the interpreter's lock

Floats = NDArray[np.float32]
Readers = Sequence["SliceReader | EqualValues"]


def check_update(path: Path, form: UpdateFormat, max_delta_norm: float) -> float:
    """Checks names, shapes, dtypes, size, finiteness and L2 norm of an update's file. Returns the norm, as `norm_of` does.

    form: the format that the file must have. Raises WrongLayout if the file has another format, NotFinite if a value is NaN or
    infinite, NormTooLarge if the norm is above `max_delta_norm`.
    """
    check_header(path, form.header, form.size_bytes)
    squares, bad, first_bad = 0.0, 0, -1
    row = np.empty(SLICE, np.float32)
    with HashingReader(path) as file:
        file.read_into(np.empty(len(form.header), np.uint8))
        reader = SliceReader(form, file.read_into)
        for position in range(0, form.layout.values, SLICE):
            values = row[: min(SLICE, form.layout.values - position)]
            reader.read(values)
            square = _square(values)
            if math.isfinite(square):
                squares += square
            else:
                finite = np.isfinite(values)
                bad += int((~finite).sum())
                first_bad = position + int(np.argmin(finite)) if first_bad < 0 else first_bad
    if bad:
        raise NotFinite(tensor=form.layout.tensor_at(first_bad), count=bad)
    if math.sqrt(squares) > max_delta_norm:
        raise NormTooLarge(norm=math.sqrt(squares), limit=max_delta_norm)
    return _rounded(math.sqrt(squares))


def norm_of(values: Floats) -> float:
    """Returns the L2 norm of the values, rounded to NORM_DIGITS. It is the norm that `check_update` returns for their file."""
    starts = range(0, values.size, SLICE)
    return _rounded(math.sqrt(sum(_square(values[start : start + SLICE]) for start in starts)))


def _rounded(norm: float) -> float:
    return float(f"{norm:.{NORM_DIGITS}g}")


def _square(values: Floats) -> float:
    """Returns the squared L2 norm of the values. It is finite if and only if all values are finite.

    The function adds short sums in float32, which is fast, and adds the short sums in float64. If a short sum is too large for
    float32, the function adds everything in float64.
    """
    whole = values[: values.size // SHORT * SHORT].reshape(-1, SHORT)
    rest = values[whole.size :]
    with np.errstate(over="ignore", invalid="ignore"):
        short = np.einsum("ij,ij->i", whole, whole)
        square = float(short.sum(dtype=np.float64)) + float(rest @ rest)
        return square if math.isfinite(square) else float(np.square(values, dtype=np.float64).sum())


def average(
    base: StoredWeights,
    moments: Sequence[StoredWeights | float],
    updates: Sequence[StoredWeights],
    weights: NDArray[np.float64],
    layout: Layout,
    optimizer: ServerOptimizer,
    outs: Sequence[Path],
    encoding: UpdateEncoding = "fp32",
    scales: Sequence[float] = (),
    combine: Combine | None = None,
) -> tuple[Manifest, ...]:
    """Writes optimizer(base, weighted_mean(updates, weights), moments) to `outs`: the next version, then each new moment.

    base: the model version that the round trains from.
    moments: the server optimizer's state. Each moment is a file, or, before the first round, one number for all its values.
    updates: sorted by client; all have `encoding`.
    weights: (clients,), one number for each update, in the order of `updates`.
    scales: one factor for each update; the updates are multiplied by their factors first. Empty if every factor is 1.
    outs: one path for the version and one path for each moment. The written files are not yet durable.
    combine: the rule that takes the place of the weighted mean; None for the mean.
    Returns the manifests of `outs`. Every byte is hashed while it is read or written for the average, not in a second pass.
    Raises Corrupt if a file's bytes do not have its digest; StorageFull if no space is left. After an error no file of `outs`
    is left.
    """
    whole, sent = update_format(layout, "fp32"), update_format(layout, encoding)
    files: list[HashingReader] = []
    try:
        with ExitStack() as stack, storage_errors("the next model version"):
            start = [open_source(source, whole, stack, files) for source in (base, *moments)]
            readers = [open_source(update, sent, stack, files) for update in updates]
            in_block, width = (AT_ONCE, SLICE) if combine is None else (len(readers), width_for(len(readers)))
            groups = [start, *(readers[first : first + in_block] for first in range(0, len(readers), in_block))]
            writers = [stack.enter_context(HashingWriter(out, layout.size_bytes)) for out in outs]
            for writer in writers:
                writer.write(layout.header)
            threads = stack.enter_context(ThreadPoolExecutor(READERS))
            flushes: list[Future[None]] = []
            blocks = _read_ahead(groups, layout.values, threads, width)
            if combine is None:
                slices = _next_slices(blocks, groups, weights, scales, optimizer)
            else:
                slices = _combined_slices(blocks, combine, weights, scales, optimizer)
            slices_to_flush = SLICES_TO_FLUSH * SLICE // width
            for number, (following, kept) in enumerate(slices, start=1):
                for writer, values in zip(writers, (following, *kept), strict=True):
                    writer.write(np.ascontiguousarray(values, dtype="<f4").data)
                if number % slices_to_flush == 0:  # the disk starts while more is computed
                    flushes += [threads.submit(sync_data, out) for out in outs]
            for file in files:
                file.check()
            for flush in flushes:
                flush.result()  # a failure that was reported here would not be reported again when the file is published
            return tuple(writer.finish() for writer in writers)
    except BaseException:
        for out in outs:
            out.unlink(missing_ok=True)
        raise


def _next_slices(
    blocks: Iterator[Floats],
    groups: Sequence[Readers],
    weights: NDArray[np.float64],
    scales: Sequence[float],
    optimizer: ServerOptimizer,
) -> Iterator[tuple[Floats, Floats]]:
    """Yields the slices of the next version and of its moments, in order. The other arguments are those of `average`.

    blocks: the blocks of each slice, in the order of `groups`. The total over the updates goes on from block to block, in the
    order of the updates, so that its bits do not depend on AT_ONCE.
    Shapes: version (slice,), moments (moments, slice).
    """
    for start in blocks:
        base, moments = start[0], start[1:]
        total, first = np.zeros(base.size), 0
        for block in itertools.islice(blocks, len(groups) - 1):
            some = slice(first, first + len(block))
            shorten(block, scales[some])
            add_weighted(total, block, weights[some])
            first = some.stop
        yield optimizer(base, mean_of(total, weights), moments)


def _combined_slices(
    blocks: Iterator[Floats],
    combine: Combine,
    weights: NDArray[np.float64],
    scales: Sequence[float],
    optimizer: ServerOptimizer,
) -> Iterator[tuple[Floats, Floats]]:
    """Yields what `_next_slices` yields, for a rule that takes the place of the mean.

    blocks: for each slice the base version with its moments, then the updates of all clients.
    """
    for start in blocks:
        deltas = next(blocks)
        shorten(deltas, scales)
        yield optimizer(start[0], combine(deltas, weights), start[1:])


def width_for(updates: int) -> int:
    """Returns how many values a slice has if memory holds it for all updates at once: fewer the more updates there are."""
    return max(COLUMNS, min(SLICE, SLICE * AT_ONCE // updates // COLUMNS * COLUMNS))


def distances_between(
    updates: Sequence[StoredWeights], layout: Layout, encoding: UpdateEncoding, scales: Sequence[float]
) -> NDArray[np.float64]:
    """Returns the squared L2 distances between the updates, above the diagonal of a matrix. The arguments are as in `average`.

    Raises Corrupt if a file's bytes do not have its digest.
    """
    form, total = update_format(layout, encoding), np.zeros((len(updates), len(updates)))
    files: list[HashingReader] = []
    with ExitStack() as stack:
        readers = [open_source(update, form, stack, files) for update in updates]
        threads = stack.enter_context(ThreadPoolExecutor(READERS))
        blocks = _read_ahead([(), readers], layout.values, threads, width_for(len(readers)))
        for deltas in itertools.islice(blocks, 1, None, 2):  # the block between two slices is that of no base version
            shorten(deltas, scales)
            add_squared_distances(total, deltas)
        for file in files:
            file.check()
    return total


def _read_ahead(groups: Sequence[Readers], values: int, threads: ThreadPoolExecutor, width: int) -> Iterator[Floats]:
    """Yields for every slice (range of the model's values), in order, one block for each group of readers: (readers, slice).

    Threads read the next block while the caller works on the current block. A later block uses the memory again: that of
    updates after the next block, that of the base version and the moments after the next slice.
    groups: the readers of the base version (the model version that the round trains from) and of the moments, then the readers
    of updates. values: number of values in the model. width: number of values in a slice; the last one may be shorter.
    """
    largest = max(len(group) for group in groups[1:])
    of_start = [np.empty((len(groups[0]), width), np.float32) for _ in range(2)]
    of_updates = [np.empty((largest, width), np.float32) for _ in range(2)]
    number = itertools.count()

    def begin(start: int, group: int) -> tuple[Floats, list[Future[None]]]:
        readers = groups[group]
        buffer = of_updates[next(number) % 2] if group else of_start[start // width % 2]
        rows = buffer[: len(readers), : min(width, values - start)]
        return rows, [threads.submit(reader.read, row) for reader, row in zip(readers, rows, strict=True)]

    first, *others = itertools.product(range(0, values, width), range(len(groups)))
    ahead = begin(*first)
    for following in (*others, None):
        block, reading = ahead
        for pending in reading:
            pending.result()
        if following is not None:
            ahead = begin(*following)
        yield block
