"""The files of the next version are made piece by piece, and the norm of the mean is that of all pieces together."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pluralllm.common.errors.private_rounds import SumImplausible
from pluralllm.common.private_rounds.ring import PIECE, MemberTail, Ring
from pluralllm.common.private_rounds.sum_files import PrivateSum, write_from_sum
from pluralllm.common.weights.layout import flat_values, layout_of, write_weights
from pluralllm.common.weights.server_optimizer import server_optimizer
from pluralllm.common.weights.stored_weights import StoredWeights
from pluralllm.common.weights.update_format import update_format, write_masked
from pluralllm.common.words.aggregation import Aggregation

MEMBERS = ("ann", "bob", "cleo")
RING = Ring(members=3, clip_norm=4.0, most_weight=1)
LAYOUT = layout_of([("w", (3 * PIECE + 7,))])
TAIL = MemberTail(weight=1, is_clipped=False, metric_weight=1, distance_weight=1, most_metric_weight=1).words()


def summed(folder: Path, value: float) -> PrivateSum:
    """Returns the sum of members whose updates have one value everywhere, without masks."""
    numbers = np.full(LAYOUT.values, round(value * RING.scale), np.int32).view(np.uint32)
    form = update_format(LAYOUT, "ring32")
    digests = [write_masked(folder / name, form, [TAIL, numbers]).digest for name in MEMBERS]
    stored = [StoredWeights(folder / name, digest) for name, digest in zip(MEMBERS, digests, strict=True)]
    return PrivateSum(MEMBERS, stored, [], RING, 1)


def test_the_norm_of_a_mean_counts_all_pieces(tmp_path: Path) -> None:
    values: NDArray[np.float32] = (np.arange(LAYOUT.values) / LAYOUT.values).astype(np.float32)
    base = StoredWeights(tmp_path / "base", write_weights(tmp_path / "base", LAYOUT, [values]).digest)
    optimizer, out = server_optimizer(Aggregation()), tmp_path / "out"
    whole = RING.clip_norm / LAYOUT.values**0.5
    write_from_sum(base, (), summed(tmp_path, 0.99 * whole), LAYOUT, optimizer, [out])
    assert np.allclose(flat_values(out, LAYOUT), values + 0.99 * whole, atol=1e-6)
    with pytest.raises(SumImplausible, match="norm"):
        write_from_sum(base, (), summed(tmp_path, 1.02 * whole), LAYOUT, optimizer, [out])
    assert not out.exists()
