"""Masks an update for a private round: clips, rounds and adds the streams, slice by slice, while the file is written."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from pluralllm.client.work.orders import Mask, Masked
from pluralllm.common.private_rounds.masks import MaskStreams
from pluralllm.common.private_rounds.ring import SLICE, Clipping, MemberTail, Ring, clipping_of, quantised
from pluralllm.common.process.files import storage_errors
from pluralllm.common.weights.layout import flat_values, read_layout
from pluralllm.common.weights.update_format import update_format, write_masked

Progress = Callable[[int, int], None]  # values done, all


def mask_update(order: Mask, on_step: Progress) -> Masked:
    """Writes the masked update of an order. The same order gives the same bytes.

    Memory: two slices and one cipher for each stream, however large the update is.
    Raises, before a file is there, NotFinite if a value is NaN or infinite, and TermTooLong for a term of a sum above the bound;
    StorageFull; the error that `on_step` raises.
    """
    layout = read_layout(order.delta)
    delta = flat_values(order.delta, layout)
    ring = Ring(order.members, order.clip_norm, order.most_weight, adds_terms=order.is_term)
    clipping = clipping_of(delta, ring)
    tail = MemberTail(
        weight=order.weight,
        is_clipped=clipping.is_clipped,
        metric_weight=order.metric_weight,
        most_metric_weight=order.most_metric_weight,
        loss=order.loss,
        distance=order.base_distance,
        distance_weight=order.distance_weight,
        score=order.score,
        not_zero=order.is_term and bool(delta.any()),
    ).words()
    pieces = _masked(order, delta, ring, clipping, tail, on_step)
    with storage_errors("a masked update"):
        manifest = write_masked(order.out, update_format(layout, "ring32"), pieces)
    return Masked(manifest.digest, clipping.is_clipped)


def _masked(
    order: Mask,
    delta: NDArray[np.float32],
    ring: Ring,
    clipping: Clipping,
    tail: NDArray[np.uint32],
    on_step: Progress,
) -> Iterator[NDArray[np.uint32]]:
    """Yields the tail and the values of a masked update. Shapes: delta (n,), tail (64,), yielded (k,) with 64 + n together."""
    streams = MaskStreams([(bytes.fromhex(key), sign) for key, sign in order.streams])
    rng = np.random.default_rng(int.from_bytes(bytes.fromhex(order.rounding)))
    streams.add_to(tail)
    yield tail
    for start in range(0, delta.size, SLICE):
        on_step(start, delta.size)
        numbers = quantised(delta[start : start + SLICE], clipping, order.weight, ring, rng)
        streams.add_to(numbers)
        yield numbers
    on_step(delta.size, delta.size)
