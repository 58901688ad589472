"""Attack 24, its second half: the memory of a private round of 128 members, on both sides, beside that of a plain round."""

import hashlib
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pluralllm.client.work.masking import mask_update
from pluralllm.client.work.orders import Mask
from pluralllm.common.private_rounds.masks import opposite
from pluralllm.common.private_rounds.ring import UPDATES, WEIGHT, Ring
from pluralllm.common.private_rounds.sum_files import PrivateSum, write_from_sum
from pluralllm.common.weights.layout import layout_of, write_weights
from pluralllm.common.weights.server_optimizer import server_optimizer
from pluralllm.common.weights.stored_weights import StoredWeights
from pluralllm.common.weights.update_format import TAIL, update_format, write_masked
from pluralllm.common.words.aggregation import Aggregation
from pluralllm.server.aggregation.update_files import average

MEMBERS = 128
VALUES = 300_000  # more than one slice: memory does not grow with what comes after
LAYOUT = layout_of([("w", (VALUES,))])
MIB = 2**20
LIMIT_MIB = 64


def peak_mib(work: Callable[[], object]) -> float:
    """Returns the most memory that some work has needed at once, in MiB."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()


def key(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(2, "big")).digest()


def test_24_the_sum_of_128_members_needs_less_than_64_mib_more_than_a_plain_mean(tmp_path: Path) -> None:
    base = StoredWeights(tmp_path / "base", write_weights(tmp_path / "base", LAYOUT, [np.zeros(VALUES, "f4")]).digest)
    numbers = np.zeros(TAIL + VALUES, np.uint32)
    numbers[[WEIGHT, UPDATES]] = 1
    masked = write_masked(tmp_path / "masked", update_format(LAYOUT, "ring32"), [numbers])
    streams = [(key(number), 1) for number in range(MEMBERS)]
    summed = PrivateSum(  # one file in all places: its numbers play no part
        tuple(f"member-{number}" for number in range(MEMBERS)),
        [StoredWeights(tmp_path / "masked", masked.digest)] * MEMBERS,
        [*streams, *opposite(streams)],
        Ring(MEMBERS, 4.0, 100),
        100,
    )
    optimizer = server_optimizer(Aggregation())
    private = peak_mib(lambda: write_from_sum(base, (), summed, LAYOUT, optimizer, [tmp_path / "private"]))
    weights = np.ones(MEMBERS)
    plain = peak_mib(lambda: average(base, (), [base] * MEMBERS, weights, LAYOUT, optimizer, [tmp_path / "plain"]))
    assert private < plain + LIMIT_MIB, (private, plain)
    assert (tmp_path / "private").read_bytes() == (tmp_path / "plain").read_bytes()


def test_24_a_member_of_128_masks_with_less_than_64_mib(tmp_path: Path) -> None:
    delta = tmp_path / "delta"
    write_weights(delta, LAYOUT, [np.full(VALUES, 1e-3, np.float32)])
    order = Mask(
        delta=delta,
        out=tmp_path / "masked",
        members=MEMBERS,
        clip_norm=4.0,
        most_weight=100,
        weight=7,
        most_metric_weight=100,
        metric_weight=7,
        distance_weight=7,
        loss=None,
        base_distance=None,
        score=None,
        streams=tuple((key(number).hex(), 1) for number in range(MEMBERS)),
        rounding=key(0).hex(),
    )
    assert peak_mib(lambda: mask_update(order, lambda done, total: None)) < LIMIT_MIB
