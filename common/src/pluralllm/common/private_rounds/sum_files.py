"""Makes the files of the next model version from the masked updates of a private round, and from what its members revealed.

The coordinator makes the files when the round ends. Whoever has the round's transcript makes them again and compares the bits.
The caller turns errors of the disk into its own.
Memory holds one slice of AT_ONCE updates at a time, however many updates there are.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.private_rounds.masks import SignedKey
from pluralllm.common.private_rounds.ring import PIECE, Ring, SumTail, check_norm, decoded_mean, decoded_sum
from pluralllm.common.private_rounds.round_sum import FixedRound, Unmasking
from pluralllm.common.weights.chunks import HashingReader, HashingWriter, Manifest
from pluralllm.common.weights.layout import Layout
from pluralllm.common.weights.server_optimizer import ServerOptimizer
from pluralllm.common.weights.stored_weights import StoredWeights, open_source
from pluralllm.common.weights.update_format import SLICE, TAIL, update_format
from pluralllm.common.words.own_weights import weight_bounds
from pluralllm.common.words.spec import RunSpec

AT_ONCE = 32  # masked updates of which memory holds a slice, that is 1 MiB each

Numbers = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class PrivateSum:
    """The masked updates of one sum, and the streams that leave the members' own numbers when they are added to it."""

    names: tuple[str, ...]  # of the members whose updates are in the sum, sorted
    updates: Sequence[StoredWeights]  # in the order of `names`; each file has the encoding ring32
    leftover: Sequence[SignedKey]
    ring: Ring
    most_metric_weight: int  # aggregation.max_examples


def ring_of(spec: RunSpec, members: int) -> Ring:
    """Returns the scale of a round's numbers. members: of the round, whether they deal or not.

    The bound on the length of a term of a sum is that of plain rounds, and client.work.sums says how long a term can be.
    """
    assert spec.private_rounds is not None  # only a run with private rounds has sums
    if spec.sums is not None:
        return Ring(members, spec.aggregation.max_delta_norm, spec.aggregation.max_examples, adds_terms=True)
    least, most = weight_bounds(spec.aggregation)
    return Ring(members, spec.private_rounds.clip_norm, most, least)


def tail_of(spec: RunSpec, members: int, updates: int, words: Sequence[int]) -> SumTail:
    """Returns the facts in the tail of a round's sum. updates: number of updates in the sum. Raises SumImplausible."""
    return SumTail.of(words, updates, ring_of(spec, members), spec.aggregation.max_examples)


def sum_of(
    spec: RunSpec, fixed: FixedRound, leftover: Sequence[SignedKey], updates: Sequence[StoredWeights]
) -> PrivateSum:
    """Returns the sum of a round. updates: the masked files, in the order of `fixed.updates`."""
    return PrivateSum(fixed.in_sum, updates, leftover, ring_of(spec, len(fixed.members)), spec.aggregation.max_examples)


def write_from_sum(
    base: StoredWeights,
    moments: Sequence[StoredWeights | float],
    summed: PrivateSum,
    layout: Layout,
    optimizer: ServerOptimizer,
    outs: Sequence[Path],
) -> tuple[tuple[Manifest, ...], tuple[int, ...]]:
    """Writes optimizer(base, mean of the sum, moments) to `outs`: the next version, then each new moment.

    The arguments are those of update_files.average, but for the sum. Returns the manifests of `outs`, and the 64 numbers of the
    sum's tail. Every byte is hashed while it is read or written.
    Raises SumImplausible if the sum cannot be one of honest updates; Corrupt if a file's bytes do not have its digest;
    OSError of a disk that fails. After an error no file of `outs` is left.
    """
    try:
        with ExitStack() as stack:
            whole, files = update_format(layout, "fp32"), list[HashingReader]()
            start = [open_source(source, whole, stack, files) for source in (base, *moments)]
            masked = [_opened(update, layout, stack, files) for update in summed.updates]
            writers = [stack.enter_context(HashingWriter(out, layout.size_bytes)) for out in outs]
            for writer in writers:
                writer.write(layout.header)
            slices = _unmasked_slices(masked, layout.values, summed.leftover)
            words = tuple(next(slices).tolist())
            tail = SumTail.of(words, len(masked), summed.ring, summed.most_metric_weight)
            squares = 0.0
            for total in slices:
                rows = np.empty((len(start), total.size), np.float32)  # (1 + moments, slice)
                for reader, row in zip(start, rows, strict=True):
                    reader.read(row)
                for piece in (slice(first, first + PIECE) for first in range(0, total.size, PIECE)):
                    mean = decoded_mean(total[piece], summed.ring, tail.weight)  # (piece,) float64
                    squares += float(mean @ mean)
                    following, kept = optimizer(rows[0, piece], mean, rows[1:, piece])
                    for writer, values in zip(writers, (following, *kept), strict=True):
                        writer.write(np.ascontiguousarray(values, dtype="<f4").data)
            for file in files:
                file.check()
            check_norm(math.sqrt(squares), summed.ring)
            return tuple(writer.finish() for writer in writers), words
    except BaseException:
        for out in outs:
            out.unlink(missing_ok=True)
        raise


def read_sum(summed: PrivateSum, layout: Layout) -> tuple[NDArray[np.float64], SumTail, tuple[int, ...]]:
    """Returns the sum of the terms, (n,), its tail, and the tail's 64 numbers. layout: of an update, n values.

    Memory holds the whole sum, as the solver needs it. Every byte is hashed while it is read.
    Raises SumImplausible if the sum cannot be one of honest updates; Corrupt if a file's bytes do not have its digest.
    """
    with ExitStack() as stack:
        files = list[HashingReader]()
        masked = [_opened(update, layout, stack, files) for update in summed.updates]
        slices = _unmasked_slices(masked, layout.values, summed.leftover)
        words = tuple(next(slices).tolist())
        tail = SumTail.of(words, len(masked), summed.ring, summed.most_metric_weight)
        total = np.concatenate([decoded_sum(one, summed.ring) for one in slices])
        for file in files:
            file.check()
    check_norm(float(np.linalg.norm(total)) / len(masked), summed.ring)
    return total, tail, words


def _opened(update: StoredWeights, layout: Layout, stack: ExitStack, files: list[HashingReader]) -> HashingReader:
    """Opens a masked update and reads its header, which its digest covers, too."""
    file = stack.enter_context(HashingReader(update.path, update.digest))
    files.append(file)
    file.read_into(np.empty(len(update_format(layout, "ring32").header), np.uint8))
    return file


def _unmasked_slices(masked: Sequence[HashingReader], values: int, leftover: Sequence[SignedKey]) -> Iterator[Numbers]:
    """Yields the unmasked sum: first its tail, then slice by slice. values: number of values in the model."""
    unmasking = Unmasking(leftover)
    rows = np.empty((min(AT_ONCE, len(masked)), SLICE), "<u4")
    for size in (TAIL, *(min(SLICE, values - start) for start in range(0, values, SLICE))):
        total = np.zeros(size, np.uint32)
        for first in range(0, len(masked), AT_ONCE):
            for file, row in zip(masked[first : first + AT_ONCE], rows, strict=False):
                file.read_into(row[:size].view(np.uint8))
                np.add(total, row[:size], out=total)
        yield unmasking.unmasked([total])
