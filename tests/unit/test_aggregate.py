import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pluralllm.common.ids import ClientId, Digest
from pluralllm.common.spec import Aggregation
from pluralllm.server.aggregate import gradient_step, weighted_mean, weights_of
from pluralllm.server.events import Receipt

RECEIPTS = [Receipt(ClientId("a"), Digest("x"), 10), Receipt(ClientId("b"), Digest("y"), 5_000)]
floats = st.floats(-1e3, 1e3, width=32)


@given(st.data(), st.integers(1, 6), st.integers(1, 40))
def test_the_weighted_mean_is_the_naive_float64_one_bit_for_bit(data: st.DataObject, clients: int, width: int) -> None:
    deltas = data.draw(hnp.arrays(np.float32, (clients, width), elements=floats))
    weights = data.draw(hnp.arrays(np.float64, clients, elements=st.integers(1, 10**6).map(float)))
    for position in range(width):
        total = 0.0
        for client in range(clients):
            total += float(weights[client]) * float(deltas[client, position])
        naive = total / sum(float(weight) for weight in weights)
        assert weighted_mean(deltas, weights)[position].tobytes() == np.float64(naive).tobytes()


def test_weights_are_examples_up_to_the_cap() -> None:
    assert weights_of(RECEIPTS, Aggregation(max_examples=1_000)).tolist() == [10, 1_000]


def test_uniform_weighting_counts_heads() -> None:
    assert weights_of(RECEIPTS, Aggregation(weighting="uniform")).tolist() == [1, 1]


def test_the_server_learning_rate_scales_the_step() -> None:
    base, mean = np.array([1.0, 2.0], dtype=np.float32), np.array([0.5, -1.0])
    stepped = gradient_step(0.5)(base, mean)
    assert stepped.tolist() == [1.25, 1.5]
    assert stepped.dtype == np.float32
