"""Updates as files: they are checked before they count, and averaged chunk by chunk."""

import errno
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from pluralllm.common.errors.tree import Corrupt, NormTooLarge, NotFinite, WrongLayout
from pluralllm.common.weights.chunks import CHUNK_BYTES, manifest_of
from pluralllm.common.weights.layout import Layout, flat_values, layout_of, write_weights
from pluralllm.common.weights.server_optimizer import first_moments, server_optimizer
from pluralllm.common.weights.stored_weights import StoredWeights
from pluralllm.common.weights.update_format import SLICE, update_format, write_update
from pluralllm.common.words.aggregation import Aggregation
from pluralllm.common.words.spec import UpdateEncoding
from pluralllm.server.aggregation import update_files
from pluralllm.server.aggregation.arithmetic import add_weighted, weighted_mean
from pluralllm.server.aggregation.rules import median
from pluralllm.server.aggregation.update_files import average, check_update, distances_between, norm_of

LAYOUT = layout_of([("a.weight", (1_000, 700)), ("b.bias", (13,)), ("c", (2, 3))])  # nearly three chunks
FP32 = update_format(LAYOUT, "fp32")
FEDAVG = server_optimizer(Aggregation())


def stored(folder: Path, name: str, values: NDArray[np.float32], layout: Layout = LAYOUT) -> StoredWeights:
    path = folder / name
    return StoredWeights(path, write_weights(path, layout, [values]).digest)


def random_values(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.01, LAYOUT.values).astype(np.float32)


def test_the_average_of_files_is_the_naive_one_bit_for_bit(tmp_path: Path) -> None:
    base = random_values(0)
    deltas = [random_values(seed) for seed in (1, 2, 3)]
    weights = np.array([3.0, 40.0, 7.0])
    updates = [stored(tmp_path, f"u{index}", delta) for index, delta in enumerate(deltas)]
    out = tmp_path / "next"
    start = stored(tmp_path, "base", base)
    (manifest,) = average(start, (), updates, weights, LAYOUT, FEDAVG, [out])
    total = np.zeros(LAYOUT.values)
    for delta, weight in zip(deltas, weights, strict=True):
        total = total + weight * delta.astype(np.float64)
    naive = (base.astype(np.float64) + total / 50.0).astype(np.float32)
    assert flat_values(out, LAYOUT).tobytes() == naive.tobytes()
    assert manifest_of(out) == manifest


def test_updates_are_multiplied_by_their_factors_before_they_are_averaged(tmp_path: Path) -> None:
    deltas = [random_values(seed) for seed in (1, 2)]
    updates = [stored(tmp_path, f"u{index}", delta) for index, delta in enumerate(deltas)]
    shorter = [stored(tmp_path, "s0", deltas[0]), stored(tmp_path, "s1", deltas[1] * np.float32(0.3))]
    base, weights = stored(tmp_path, "base", random_values(0)), np.array([3.0, 4.0])
    outs = [tmp_path / "next", tmp_path / "same"]
    average(base, (), updates, weights, LAYOUT, FEDAVG, outs[:1], scales=(1.0, 0.3))
    average(base, (), shorter, weights, LAYOUT, FEDAVG, outs[1:])
    assert outs[0].read_bytes() == outs[1].read_bytes()


@pytest.mark.parametrize("scales", [(), (1.0, 0.3, 0.5)])
def test_distances_are_those_between_updates_multiplied_by_their_factors(
    tmp_path: Path, scales: tuple[float, ...]
) -> None:
    deltas = [random_values(seed) for seed in (1, 2, 3)]
    updates = [stored(tmp_path, f"u{index}", delta) for index, delta in enumerate(deltas)]
    whole = np.stack(deltas).astype(np.float64) * np.array(scales or (1.0, 1.0, 1.0))[:, None]
    expected = np.triu(np.square(whole[:, None] - whole[None]).sum(axis=-1))
    assert distances_between(updates, LAYOUT, "fp32", scales) == pytest.approx(expected, rel=1e-4)


def test_a_rule_in_place_of_the_mean_leaves_the_moments_of_the_optimizer_their_part(tmp_path: Path) -> None:
    aggregation, deltas = Aggregation(optimizer="fedadam"), [random_values(seed) for seed in (1, 2, 3)]
    step, values = server_optimizer(aggregation), random_values(0)
    first = np.repeat(np.array(first_moments(aggregation), np.float32)[:, None], LAYOUT.values, axis=1)
    base = stored(tmp_path, "base", values)
    updates = [stored(tmp_path, f"u{index}", delta) for index, delta in enumerate(deltas)]
    outs = [tmp_path / name for name in ("next", "next.m", "next.v")]
    moments = list(first_moments(aggregation))
    average(base, moments, updates, np.ones(3), LAYOUT, step, outs, combine=median)
    following, kept = step(values, median(np.stack(deltas), np.ones(3)), first)
    for out, expected in zip(outs, (following, *kept), strict=True):
        assert flat_values(out, LAYOUT).tobytes() == expected.tobytes()


@pytest.mark.parametrize("values", [random_values(3), np.zeros(5, np.float32), np.full(2, 3e38, np.float32)])
def test_the_norm_of_values_is_the_norm_of_their_file(tmp_path: Path, values: NDArray[np.float32]) -> None:
    layout = layout_of([("w", (values.size,))])
    path = stored(tmp_path, "u", values, layout).path
    norm = check_update(path, update_format(layout, "fp32"), float("inf"))
    assert norm == norm_of(values) == pytest.approx(float(np.linalg.norm(values.astype(np.float64))), rel=1e-5)


def test_a_header_longer_than_a_chunk_is_averaged_too(tmp_path: Path) -> None:
    layout = layout_of([(f"{'x' * 200}{index:05}", (2,)) for index in range(CHUNK_BYTES // 250)])
    assert len(layout.header) > CHUNK_BYTES
    values = np.arange(layout.values, dtype=np.float32)
    update = stored(tmp_path, "u", values, layout)
    base = stored(tmp_path, "base", np.zeros_like(values), layout)
    out = tmp_path / "next"
    average(base, (), [update], np.ones(1), layout, FEDAVG, [out])
    assert flat_values(out, layout).tobytes() == values.tobytes()


def test_a_flipped_bit_in_a_stored_update_is_found_and_nothing_is_written(tmp_path: Path) -> None:
    base, update = stored(tmp_path, "base", random_values(0)), stored(tmp_path, "u", random_values(1))
    with update.path.open("r+b") as file:
        file.seek(1_500_000)
        byte = file.read(1)
        file.seek(1_500_000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(Corrupt, match=update.digest):
        average(base, (), [update], np.ones(1), LAYOUT, FEDAVG, [tmp_path / "next"])
    assert not (tmp_path / "next").exists()


@pytest.mark.parametrize("optimizer", ["fedavgm", "fedadam", "fedyogi"])
def test_moments_are_files_of_the_models_layout_and_what_the_whole_arrays_give(tmp_path: Path, optimizer: Any) -> None:
    aggregation = Aggregation(optimizer=optimizer)
    step, first = server_optimizer(aggregation), first_moments(aggregation)
    values, kept = random_values(0), np.repeat(np.array(first, np.float32)[:, None], LAYOUT.values, axis=1)
    base = stored(tmp_path, "v0", values)
    moments: list[StoredWeights | float] = list(first)
    for number in (1, 2):
        delta = random_values(number)
        outs = [tmp_path / f"v{number}{end}" for end in ("", *(f".m{index}" for index in range(len(first))))]
        update = stored(tmp_path, f"u{number}", delta)
        manifests = average(base, moments, [update], np.ones(1), LAYOUT, step, outs)
        values, kept = step(values, delta.astype(np.float64), kept)
        for out, manifest, whole in zip(outs, manifests, (values, *kept), strict=True):
            assert manifest_of(out) == manifest
            assert flat_values(out, LAYOUT).tobytes() == whole.tobytes()
        base = StoredWeights(outs[0], manifests[0].digest)
        moments = [StoredWeights(out, m.digest) for out, m in zip(outs[1:], manifests[1:], strict=True)]


def test_a_flipped_bit_in_a_moment_is_found_and_nothing_is_written(tmp_path: Path) -> None:
    step = server_optimizer(Aggregation(optimizer="fedavgm"))
    base, moment, update = (stored(tmp_path, name, random_values(seed)) for seed, name in enumerate(("v", "m", "u")))
    content = bytearray(moment.path.read_bytes())
    content[-9] ^= 1
    moment.path.write_bytes(content)
    outs = [tmp_path / "next", tmp_path / "next.m"]
    with pytest.raises(Corrupt, match=moment.digest):
        average(base, [moment], [update], np.ones(1), LAYOUT, step, outs)
    assert not any(out.exists() for out in outs)


def test_a_good_update_passes_and_its_norm_is_told(tmp_path: Path) -> None:
    values = random_values(1)
    norm = check_update(stored(tmp_path, "u", values).path, FP32, 100.0)
    assert norm == pytest.approx(float(np.linalg.norm(values.astype(np.float64))))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_an_update_with_a_value_that_is_not_finite_is_refused_by_tensor(tmp_path: Path, poison: float) -> None:
    values = random_values(1)
    values[700_005] = poison
    with pytest.raises(NotFinite, match=r"b\.bias"):
        check_update(stored(tmp_path, "u", values).path, FP32, 100.0)


def test_an_update_with_an_excessive_norm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NormTooLarge):
        check_update(stored(tmp_path, "u", random_values(1)).path, FP32, 0.5)


def test_a_norm_at_the_limit_is_allowed_and_one_above_it_is_refused(tmp_path: Path) -> None:
    layout = layout_of([("w", (SLICE + 7,))])
    values = np.zeros(layout.values, np.float32)
    values[3], values[-1] = 3, -4  # in two slices; the second one is short
    path, form = stored(tmp_path, "u", values, layout).path, update_format(layout, "fp32")
    assert check_update(path, form, 5.0) == 5.0
    with pytest.raises(NormTooLarge) as refused:
        check_update(path, form, math.nextafter(5.0, 0))
    assert refused.value.norm == 5.0
    values *= 0.01  # a norm below 1 is smaller than its root
    assert check_update(stored(tmp_path, "u", values, layout).path, form, 0.0501) == 0.05
    with pytest.raises(NormTooLarge):
        check_update(path, form, 0.0499)


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({"a.weight": np.zeros((1_000, 700), np.float32), "b.bias": np.zeros(13, np.float32)}, "tensor c is absent"),
        (
            {
                "a.weight": np.zeros((700, 1_000), np.float32),
                "b.bias": np.zeros(13, np.float32),
                "c": np.zeros((2, 3), np.float32),
            },
            r"\(700, 1000\)",
        ),
        (
            {
                "a.weight": np.zeros((1_000, 700), np.float16),
                "b.bias": np.zeros(13, np.float32),
                "c": np.zeros((2, 3), np.float32),
            },
            "F16",
        ),
    ],
)
def test_an_update_of_another_layout_is_refused_and_the_difference_named(
    tmp_path: Path, tensors: dict[str, NDArray[np.float32]], named: str
) -> None:
    path = tmp_path / "u"
    save_file(tensors, path)
    with pytest.raises(WrongLayout, match=named):
        check_update(path, FP32, 100.0)


@pytest.mark.parametrize(
    "content", [b"", b"\x08", b"\xff" * 64, b"\x00" * 5_000, b"\x02\x00\x00\x00\x00\x00\x00\x00{}"]
)
def test_bytes_that_are_no_weights_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "u"
    path.write_bytes(content)
    with pytest.raises(WrongLayout):
        check_update(path, FP32, 100.0)


@pytest.mark.parametrize("encoding", ["bf16", "int8"])
def test_encoded_updates_are_averaged_as_they_are_read(encoding: UpdateEncoding, tmp_path: Path) -> None:
    form, base = update_format(LAYOUT, encoding), stored(tmp_path, "base", random_values(0))
    updates, read = [], []
    for seed in (1, 2):
        path = tmp_path / f"u{seed}"
        manifest, values = write_update(path, form, random_values(seed), np.random.default_rng(seed))
        norm = check_update(path, form, 100.0)
        assert norm == pytest.approx(float(np.linalg.norm(values)), rel=1e-5)
        assert manifest_of(path) == manifest
        updates.append(StoredWeights(path, manifest.digest))
        read.append(values.astype(np.float64))
    out = tmp_path / "next"
    average(base, (), updates, np.array([1.0, 3.0]), LAYOUT, FEDAVG, [out], encoding)
    naive = (random_values(0).astype(np.float64) + (read[0] + 3 * read[1]) / 4).astype(np.float32)
    assert flat_values(out, LAYOUT).tobytes() == naive.tobytes()


@pytest.mark.parametrize("encoding", ["bf16", "int8"])
def test_an_update_in_another_encoding_or_with_a_broken_scale_is_refused(
    encoding: UpdateEncoding, tmp_path: Path
) -> None:
    form = update_format(LAYOUT, encoding)
    with pytest.raises(WrongLayout):
        check_update(stored(tmp_path, "u", random_values(1)).path, form, 100.0)
    path = tmp_path / "broken"
    write_update(path, form, random_values(1), np.random.default_rng(0))
    with path.open("r+b") as file:
        file.seek(len(form.header))
        file.write(b"\xff\xff\xff\xff")  # NaN as float32, and as two values of bf16
    with pytest.raises(NotFinite):
        check_update(path, form, 100.0)


def test_memory_holds_two_blocks_of_updates_by_turns_however_many_updates_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update_files, "AT_ONCE", 2)
    layout = layout_of([("a", (5 * SLICE // 2,))])
    base = stored(tmp_path, "base", np.full(layout.values, 5, np.float32), layout)
    updates = [stored(tmp_path, f"{n}", np.full(layout.values, n, np.float32), layout) for n in (1, 2, 3)]
    outs, blocks, starts = [tmp_path / "next", tmp_path / "next.m1", tmp_path / "next.m2"], [], []

    def add(total: NDArray[np.float64], deltas: NDArray[np.float32], weights: NDArray[np.float64]) -> None:
        blocks.append(deltas)
        expected = [1, 2] if len(blocks) % 2 else [3]
        assert deltas[:, 0].tolist() == deltas[:, -1].tolist() == weights.tolist() == expected
        add_weighted(total, deltas, weights)

    def optimize(
        start: NDArray[np.float32], mean: NDArray[np.float64], moments: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        starts.append(start)
        assert (start[0], start[-1]) == (5, 5)
        assert moments[:, 0].tolist() == moments[:, -1].tolist() == [7, 8]
        return (start + mean).astype(np.float32), moments + np.float32(1)

    monkeypatch.setattr(update_files, "add_weighted", add)
    average(base, (7.0, 8.0), updates, np.array([1.0, 2.0, 3.0]), layout, optimize, outs)
    widths = [SLICE, SLICE, SLICE // 2]
    assert [block.shape for block in blocks] == [(rows, width) for width in widths for rows in (2, 1)]
    for kept in (blocks, starts):
        assert np.shares_memory(kept[0], kept[2]), "the third one is read where the first one was"
        assert not np.shares_memory(kept[0], kept[1]), "one is read while the other one is added"
    mean = np.float32(5 + (1 + 4 + 9) / 6)
    for out, value in zip(outs, (mean, 8, 9), strict=True):
        assert np.array_equal(flat_values(out, layout), np.full(layout.values, value, np.float32))


@pytest.mark.parametrize("at_once", [1, 2, 3, 4, 32])
def test_the_bits_do_not_depend_on_how_many_updates_are_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(update_files, "AT_ONCE", at_once)
    layout = layout_of([("w", (50,))])
    deltas = [np.random.default_rng(seed).normal(0, 10.0**seed, 50).astype(np.float32) for seed in range(6)]
    updates = [stored(tmp_path, f"u{index}", delta, layout) for index, delta in enumerate(deltas)]
    weights, scales = np.array([3.0, 0.1, 7.0, 1e-3, 11.0, 5.0]), (1.0, 0.3, 1.0, 0.7, 0.9, 1.0)
    out = tmp_path / "next"
    base = stored(tmp_path, "base", np.zeros(50, np.float32), layout)
    average(base, (), updates, weights, layout, FEDAVG, [out], scales=scales)
    shorter = np.stack([delta * np.float32(scale) for delta, scale in zip(deltas, scales, strict=True)])
    assert flat_values(out, layout).tobytes() == weighted_mean(shorter, weights).astype(np.float32).tobytes()


def test_all_bad_values_are_counted_and_the_first_one_is_named(tmp_path: Path) -> None:
    layout = layout_of([("a", (5,)), ("b", (2 * SLICE,)), ("c", (7,))])
    form = update_format(layout, "fp32")
    for positions, tensor in (
        ((0, SLICE + 3, 2 * SLICE + 9), "a"),
        ((7, 8, SLICE + 3), "b"),
        ((layout.values - 1,), "c"),
    ):
        values = np.zeros(layout.values, np.float32)
        values[list(positions)] = np.nan
        with pytest.raises(NotFinite) as refused:
            check_update(stored(tmp_path, "u", values, layout).path, form, 100.0)
        assert (refused.value.tensor, refused.value.count) == (tensor, len(positions))


def test_a_norm_has_six_significant_digits() -> None:
    assert norm_of(np.array([1.23456789], np.float32)) == 1.23457
    assert norm_of(np.array([123456.7], np.float32)) == 123457.0


@pytest.mark.parametrize("every", [3, 4])
def test_the_disk_starts_to_write_after_some_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    layout = layout_of([("a", (4 * SLICE + 5,))])  # five slices
    synced: list[Path] = []
    monkeypatch.setattr(update_files, "SLICES_TO_FLUSH", every)
    monkeypatch.setattr(update_files, "sync_data", synced.append)
    base, update = (stored(tmp_path, name, np.ones(layout.values, np.float32), layout) for name in ("v", "u"))
    out = tmp_path / "next"
    average(base, (), [update], np.ones(1), layout, FEDAVG, [out])
    assert synced == [out]


def test_a_disk_that_fails_meanwhile_fails_the_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Path) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(update_files, "SLICES_TO_FLUSH", 1)
    monkeypatch.setattr(update_files, "sync_data", fails)
    base, update = stored(tmp_path, "v", random_values(0)), stored(tmp_path, "u", random_values(1))
    with pytest.raises(OSError, match="broken"):
        average(base, (), [update], np.ones(1), LAYOUT, FEDAVG, [tmp_path / "next"])
    assert not (tmp_path / "next").exists()


def test_a_file_that_cannot_be_read_is_named_although_nothing_is_written_yet(tmp_path: Path) -> None:
    base, update = stored(tmp_path, "v", random_values(0)), stored(tmp_path, "u", random_values(1))
    base.path.write_bytes(b"")
    with pytest.raises(Corrupt, match="stored weights v"):
        average(base, (), [update], np.ones(1), LAYOUT, FEDAVG, [tmp_path / "next"])
