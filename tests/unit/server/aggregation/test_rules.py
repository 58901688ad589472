"""Each rule gives what its plain definition gives, and the same bits for every size of slice."""

import asyncio
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from pluralllm.common.errors.tree import UpdateLost
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.weights.layout import Layout, flat_values, layout_of
from pluralllm.common.weights.update_format import BLOCK, SLICE, update_format, write_update
from pluralllm.common.words.aggregation import Aggregation
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.spec import RunSpec, UpdateEncoding
from pluralllm.server.aggregation import next_version, update_files
from pluralllm.server.aggregation.aggregator import aggregator
from pluralllm.server.aggregation.arithmetic import weighted_mean
from pluralllm.server.aggregation.next_version import NextVersion, write_next
from pluralllm.server.aggregation.rules import add_squared_distances, closest, median, trimmed_mean
from pluralllm.server.aggregation.update_files import width_for
from pluralllm.server.rounds.events import Receipt
from pluralllm.server.storage.blobs import LocalBlobs

RULES: list[Any] = ["mean", "trimmed_mean", "median", "multi_krum", "median_norm_clip"]
floats = st.floats(-1e3, 1e3, width=32)
shapes = st.tuples(st.integers(5, 9), st.integers(1, 12))
counts = st.integers(1, 40)


@settings(max_examples=30)
@given(st.data(), shapes, st.integers(1, 2))
def test_a_trimmed_mean_leaves_out_the_largest_and_smallest_numbers_and_weighs_the_others(
    data: st.DataObject, shape: tuple[int, int], trimmed: int
) -> None:
    deltas = data.draw(hnp.arrays(np.float32, shape, elements=floats))
    weights = data.draw(hnp.arrays(np.float64, shape[0], elements=counts.map(float)))
    result = trimmed_mean(deltas, weights, trimmed)
    for column, trimmed_value in zip(deltas.T, result, strict=True):
        kept = sorted(zip(column.tolist(), range(shape[0]), strict=True))[trimmed:-trimmed]
        expected = sum(number * weights[client] for number, client in kept) / sum(weights[c] for _, c in kept)
        assert trimmed_value == pytest.approx(expected, rel=1e-12, abs=1e-9)
        assert kept[0][0] - 1e-9 <= trimmed_value <= kept[-1][0] + 1e-9


@settings(max_examples=30)
@given(st.data(), shapes)
def test_a_median_is_that_of_as_many_copies_as_a_client_has_weight(data: st.DataObject, shape: tuple[int, int]) -> None:
    deltas = data.draw(hnp.arrays(np.float32, shape, elements=floats))
    weights = data.draw(hnp.arrays(np.int64, shape[0], elements=counts))
    copies = np.repeat(deltas.astype(np.float64), weights, axis=0)
    for factor in (1.0, 2**-20, 2**30):
        assert median(deltas, weights * factor).tolist() == np.median(copies, axis=0).tolist()


def plain_choice(deltas: NDArray[np.float32], attackers: int) -> tuple[int, ...]:
    """Multi-Krum as the paper writes it down: the n - f best scores over the n - f - 2 nearest others."""
    clients = len(deltas)
    exact = deltas.astype(np.float64)
    scores = []
    for place in range(clients):
        apart = sorted(float(((exact[place] - exact[o]) ** 2).sum()) for o in range(clients) if o != place)
        scores.append((sum(apart[: clients - attackers - 2]), place))
    return tuple(sorted(place for _, place in sorted(scores)[: clients - attackers]))


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(0, 3), st.integers(1, 2 * BLOCK + 3))
def test_multi_krum_chooses_the_updates_with_the_nearest_others(
    seed: int, attackers: int, more: int, width: int
) -> None:
    clients = 2 * attackers + 3 + more
    deltas = np.random.default_rng(seed).normal(size=(clients, width)).astype(np.float32)
    distances = np.zeros((clients, clients))
    add_squared_distances(distances, deltas)
    for first, second in combinations(range(clients), 2):
        apart = deltas[first].astype(np.float64) - deltas[second]
        assert distances[first, second] == pytest.approx(float((apart**2).sum()))
    chosen = closest(distances, attackers)
    assert chosen == plain_choice(deltas, attackers)
    mean = aggregator(Aggregation(rule="multi_krum", assumed_attackers=attackers)).whole(deltas, np.ones(clients))
    assert mean.tobytes() == weighted_mean(deltas[list(chosen)], np.ones(len(chosen))).tobytes()


def test_of_equally_far_updates_the_earlier_clients_are_chosen() -> None:
    assert closest(np.zeros((7, 7)), 2) == (0, 1, 2, 3, 4)


def test_a_median_of_even_weights_is_the_usual_one_and_a_client_with_most_of_the_weight_decides_alone() -> None:
    deltas = np.array([[1], [2], [5], [9]], np.float32)
    for share in (1.0, 0.25, 1 / 7, 3e-7):  # no rounding error of a sum moves the middle
        assert median(np.repeat(deltas, 3, axis=0), np.full(12, share)).tolist() == [3.5]
    assert median(deltas, np.array([1.0, 1.0, 1.0, 4.0])).tolist() == [9.0]
    assert median(deltas, np.array([1.0, 1.0, 1.0, 3.0])).tolist() == [7.0]  # half of the weight: on the edge


@pytest.mark.parametrize("rule", ["mean", "median_norm_clip"])
def test_a_rule_that_works_on_lengths_is_the_mean_of_what_is_left(rule: Any) -> None:
    deltas, weights = np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32), np.array([1.0, 2.0, 3.0, 4.0])
    assert (
        aggregator(Aggregation(rule=rule)).whole(deltas, weights).tobytes() == weighted_mean(deltas, weights).tobytes()
    )


# Files

CLIENTS = [ClientId(name) for name in ("ann", "ben", "cem", "dan", "eva", "fay", "gus")]
EXAMPLES = (10, 30, 20, 25, 15, 12, 28)
SCALES = (1.0, 0.5, 1.0, 1.0, 0.25, 1.0, 0.9)
LAYOUT = layout_of([("a", (1_500, 2)), ("b", (77,))])


def spec_of(rule: str, encoding: UpdateEncoding = "fp32") -> RunSpec:
    return RunSpec.model_validate(
        {
            "format": "pluralllm.run/2",
            "round": {"min_clients": 7, "target_clients": 7},
            "aggregation": {"rule": rule, "assumed_attackers": 2, "weighting": weighting_of(rule)},
            "updates": {"encoding": encoding},
            "embedding": {"model": "m", "dimension": 8},
        }
    )


def weighting_of(rule: str) -> str:
    return "uniform" if rule == "multi_krum" else "examples"


class ARound:
    """Updates of seven clients as blobs; one of them is far from the others."""

    def __init__(self, folder: Path, spec: RunSpec, monkeypatch: pytest.MonkeyPatch, layout: Layout = LAYOUT) -> None:
        monkeypatch.setattr(next_version, "layout_for", lambda _: layout)
        self.folder, self.spec, self.blobs, self.layout = folder, spec, LocalBlobs(folder), layout
        self.receipts, read, form = [], [], update_format(layout, spec.updates.encoding)
        for number, client in enumerate(CLIENTS):
            rng = np.random.default_rng(number)
            values = rng.normal(0.0, 0.01, layout.values) + (3.0 if client == "cem" else 0.0)
            manifest, as_read = write_update(folder / "draft", form, values.astype(np.float32), rng)
            asyncio.run(self.blobs.put(manifest.digest, folder / "draft"))
            self.receipts.append(Receipt(client, manifest.digest, EXAMPLES[number]))
            read.append(as_read)
        self.read: NDArray[np.float32] = np.stack(read)
        first, _ = write_update(
            folder / "draft", update_format(layout, "fp32"), np.zeros(layout.values, np.float32), rng
        )
        asyncio.run(self.blobs.put(first.digest, folder / "draft"))
        record = (RunId("r"), ModelVersion(0), RoundNumber(0), first.digest, spec.sha256(), "", ())
        self.base = VersionRecord(*record, created_s=0.0)

    def average(self) -> tuple[NDArray[np.float32], NextVersion]:
        out = self.folder / "next"
        made = asyncio.run(write_next(self.blobs, self.spec, self.base, self.receipts, (), SCALES, out))
        return flat_values(out, self.layout), made

    def expected(self) -> NDArray[np.float32]:
        """Returns what whole updates in memory give."""
        shorter = self.read * np.array(SCALES, np.float32)[:, None]
        weights = np.ones(7) if self.spec.aggregation.weighting == "uniform" else np.array(EXAMPLES, np.float64)
        return aggregator(self.spec.aggregation).whole(shorter, weights).astype(np.float32)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("encoding", ["fp32", "int8"])
def test_files_give_the_bits_of_whole_updates_in_memory_for_any_size_of_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str, encoding: UpdateEncoding
) -> None:
    a_round = ARound(tmp_path, spec_of(rule, encoding), monkeypatch)
    expected = a_round.expected().tobytes()
    for at_once, slice_values in ((32, SLICE), (2, 2 * BLOCK), (1, BLOCK), (5, 3 * BLOCK)):
        monkeypatch.setattr(update_files, "AT_ONCE", at_once)
        monkeypatch.setattr(update_files, "SLICE", slice_values)
        values, _ = a_round.average()
        assert values.tobytes() == expected


def test_the_updates_that_multi_krum_chooses_are_named_and_no_other_rule_names_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, made = ARound(tmp_path, spec_of("multi_krum"), monkeypatch).average()
    assert sum(made.chosen) == 5
    assert made.chosen[CLIENTS.index(ClientId("cem"))] == 0.0
    assert ARound(tmp_path, spec_of("median"), monkeypatch).average()[1].chosen == ()


def test_an_update_that_is_lost_is_named_by_the_rule_that_reads_all_of_them_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_round = ARound(tmp_path, spec_of("multi_krum"), monkeypatch)
    far: Digest = a_round.receipts[2].digest  # the update that is not chosen
    path = tmp_path / far[:2] / far
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UpdateLost):
        a_round.average()


def test_a_slice_of_all_updates_is_no_larger_than_a_block_of_the_mean() -> None:
    assert [width_for(updates) for updates in (1, 32, 33, 64, 1000)] == [
        SLICE,
        SLICE,
        248 * BLOCK,
        SLICE // 2,
        8 * BLOCK,
    ]
    assert width_for(10**6) == BLOCK
