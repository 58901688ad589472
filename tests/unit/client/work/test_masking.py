"""Masking by the worker: the file is the quantised delta plus its streams, and the keys are shown nowhere."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pluralllm.client.work.commands import fields_of
from pluralllm.client.work.masking import mask_update
from pluralllm.client.work.orders import MASK, Mask, Masked
from pluralllm.client.work.worker import LocalWork
from pluralllm.common.errors.private_rounds import TermTooLong
from pluralllm.common.errors.tree import NotFinite, WorkerDied
from pluralllm.common.private_rounds.masks import add_masks
from pluralllm.common.private_rounds.ring import (
    CLIPPED,
    DISTANCE,
    LOSS,
    LOSS_WEIGHT,
    NOT_ZERO,
    SLICE,
    UPDATES,
    WEIGHT,
    Ring,
)
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.weights.layout import layout_of, write_weights
from pluralllm.common.weights.update_format import update_format

VALUES = SLICE + 77
LAYOUT = layout_of([("w", (VALUES,))])
FORM = update_format(LAYOUT, "ring32")
KEYS = (("11" * 32, 1), ("22" * 32, -1))


@pytest.fixture
def order(tmp_path: Path) -> Mask:
    delta = np.random.default_rng(1).normal(0, 0.001, VALUES).astype(np.float32)
    write_weights(tmp_path / "delta", LAYOUT, [delta])
    return Mask(
        delta=tmp_path / "delta",
        out=tmp_path / "out",
        members=5,
        clip_norm=4.0,
        most_weight=400,
        weight=100,
        most_metric_weight=400,
        metric_weight=100,
        distance_weight=100,
        loss=1.5,
        base_distance=None,
        score=None,
        streams=KEYS,
        rounding="33" * 32,
    )


def numbers(path: Path) -> NDArray[np.uint32]:
    return np.fromfile(path, "<u4", offset=len(FORM.header))


def masked(order: Mask) -> tuple[Masked, NDArray[np.uint32]]:
    result = mask_update(order, lambda done, total: None)
    assert result.digest == manifest_of(order.out).digest
    return result, numbers(order.out)


def test_a_masked_file_is_the_quantised_delta_and_its_tail_plus_the_streams(order: Mask) -> None:
    result, total = masked(order)
    plain = masked(replace(order, streams=()))[1]
    for key, sign in KEYS:
        add_masks(plain, 0, [(bytes.fromhex(key), sign)])
    assert np.array_equal(total, plain)
    assert order.out.stat().st_size == FORM.size_bytes
    assert not result.is_clipped


def test_the_numbers_without_streams_are_the_weighted_delta_and_the_tail_says_what_was_measured(order: Mask) -> None:
    plain = masked(replace(order, streams=()))[1]
    delta = np.fromfile(order.delta, "<f4", offset=len(LAYOUT.header))
    steps = Ring(5, 4.0, 400).scale * delta.astype(np.float64) * 100 / 400
    assert np.abs(plain[64:].view(np.int32) - steps).max() <= 1
    assert np.abs((plain[64:].view(np.int32) - steps).mean()) < 0.01, "rounding is without bias"
    assert [plain[place] for place in (WEIGHT, UPDATES, CLIPPED, LOSS_WEIGHT, DISTANCE)] == [100, 1, 0, 100, 0]
    assert plain[LOSS] == round(1.5 * 4096 * 100 / 400)


def test_loss_and_distance_have_their_own_weights_whatever_the_updates_weight_is(order: Mask) -> None:
    fair = replace(order, streams=(), most_weight=2**20, weight=2**19, distance_weight=400, base_distance=0.25)
    plain = masked(fair)[1]
    delta = np.fromfile(order.delta, "<f4", offset=len(LAYOUT.header))
    assert np.abs(plain[64:].view(np.int32) - Ring(5, 4.0, 2**20).scale * delta.astype(np.float64) / 2).max() <= 1
    assert [plain[place] for place in (WEIGHT, LOSS_WEIGHT, DISTANCE - 1, DISTANCE)] == [2**19, 100, 400, 1024]
    assert plain[LOSS] == round(1.5 * 4096 * 100 / 400)


def test_the_same_order_gives_the_same_bytes_and_another_seed_other_ones(order: Mask) -> None:
    first = masked(order)[0].digest
    assert masked(order)[0].digest == first
    assert masked(replace(order, rounding="44" * 32))[0].digest != first


def test_a_delta_above_the_norm_is_scaled_down_and_counted(order: Mask) -> None:
    result, plain = masked(replace(order, streams=(), clip_norm=0.1))
    assert result.is_clipped
    assert plain[CLIPPED] == 1
    ring = Ring(5, 0.1, 400)
    norm = np.sqrt((plain[64:].view(np.int32).astype(np.float64) ** 2).sum()) / ring.scale / 100 * 400
    assert norm == pytest.approx(0.1, rel=1e-3)


def test_a_term_of_a_sum_counts_in_full_whatever_its_weight_and_says_whether_it_is_zero(order: Mask) -> None:
    term = replace(order, streams=(), clip_norm=40.0, is_term=True)
    _, plain = masked(term)
    delta = np.fromfile(order.delta, "<f4", offset=len(LAYOUT.header))
    steps = Ring(5, 40.0, 400, adds_terms=True).scale * delta.astype(np.float64)
    assert np.abs(plain[64:].view(np.int32) - steps).max() <= 1
    assert [plain[place] for place in (WEIGHT, UPDATES, CLIPPED, NOT_ZERO)] == [100, 1, 0, 1]
    write_weights(order.delta, LAYOUT, [np.zeros(VALUES, np.float32)])
    _, zeros = masked(term)
    assert [place for place, word in enumerate(zeros) if word] == [WEIGHT, UPDATES, LOSS_WEIGHT, LOSS]


def test_a_term_above_the_bound_is_refused_before_a_file_is_there(order: Mask) -> None:
    with pytest.raises(TermTooLong, match=r"has the L2 norm 0\.51\d*, the run allows 0\.1;"):
        masked(replace(order, clip_norm=0.1, is_term=True))
    assert not order.out.exists()


def test_a_delta_that_is_not_finite_is_refused_before_a_file_is_there(order: Mask, tmp_path: Path) -> None:
    write_weights(tmp_path / "delta", LAYOUT, [np.full(VALUES, np.nan, np.float32)])
    with pytest.raises(NotFinite):
        masked(order)
    assert not order.out.exists()


def test_the_worker_answers_the_order_and_reports_its_progress(order: Mask) -> None:
    reports: list[tuple[str, int, int]] = []
    read = MASK.read_order(fields_of(order))
    assert read == order
    result = LocalWork().mask(lambda *report: reports.append(report), read)
    assert MASK.read_result(fields_of(result)) == result
    assert [report[:2] for report in reports] == [("masking", 0), ("masking", SLICE), ("masking", VALUES)]


def test_no_text_about_an_order_shows_a_key(order: Mask) -> None:
    fields = fields_of(order)
    assert fields["streams"] == [list(one) for one in KEYS]
    with pytest.raises(WorkerDied) as refusal:
        MASK.read_order({**fields, "weight": "x"})
    for text in (repr(order), str(order), str(refusal.value), repr(refusal.value)):
        assert "11" * 32 not in text
        assert "33" * 32 not in text
