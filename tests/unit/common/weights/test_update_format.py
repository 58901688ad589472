"""The encodings of updates: their sizes, their rounding, and no loss over rounds."""

import math
import warnings
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from pluralllm.common.errors.tree import Corrupt, WrongLayout
from pluralllm.common.weights.chunks import HashingReader
from pluralllm.common.weights.layout import layout_of
from pluralllm.common.weights.update_format import (
    BLOCK,
    SLICE,
    TAIL,
    SliceReader,
    UpdateFormat,
    as_read,
    decode,
    update_format,
    write_masked,
    write_update,
)
from pluralllm.common.words.spec import UpdateEncoding

LAYOUT = layout_of([("a.weight", (900, 700)), ("b.bias", (13,))])  # three slices; the last one is short


def random_delta(seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    rng = np.random.default_rng(seed)
    sizes = np.repeat(10.0 ** rng.integers(-6, 0, -(-LAYOUT.values // BLOCK)), BLOCK)[: LAYOUT.values]
    return (rng.normal(0, 1, LAYOUT.values) * sizes).astype(np.float32)


@pytest.mark.parametrize(("encoding", "share"), [("fp32", 1.0), ("bf16", 0.5), ("int8", 0.251)])
def test_bytes_are_halved_and_quartered(encoding: UpdateEncoding, share: float, tmp_path: Path) -> None:
    form = update_format(LAYOUT, encoding)
    manifest, _ = write_update(tmp_path / "u", form, random_delta(0), np.random.default_rng(0))
    assert manifest.size_bytes == form.size_bytes == (tmp_path / "u").stat().st_size
    assert manifest.size_bytes == pytest.approx(share * LAYOUT.size_bytes, rel=0.003)


def test_any_reader_of_safetensors_finds_the_numbers(tmp_path: Path) -> None:
    delta = random_delta(1)
    _, read = write_update(tmp_path / "u", update_format(LAYOUT, "int8"), delta, np.random.default_rng(0))
    found = load_file(tmp_path / "u")
    steps = np.repeat(found["scales"], BLOCK)[: LAYOUT.values]
    assert np.array_equal(found["values"] * steps, read)


def test_bf16_rounds_to_nearest_and_ties_to_even() -> None:
    one, step = 1.0, 2.0**-7
    given_ = np.array([one, one + 0.5 * step, one + 1.5 * step, one + 0.51 * step, -one - 0.49 * step], np.float32)
    read = as_read(given_, "bf16", np.random.default_rng(0))
    assert read.tolist() == [one, one, one + 2 * step, one + step, -one]


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=3 * BLOCK), st.integers(0, 2**32))
def test_int8_is_less_than_a_step_off_and_keeps_signs_and_zeros(values: list[float], seed: int) -> None:
    delta = np.array(values, np.float32)
    read = as_read(delta, "int8", np.random.default_rng(seed))
    for start in range(0, delta.size, BLOCK):
        block, read_block = (array[start : start + BLOCK].astype(np.float64) for array in (delta, read))
        step = np.abs(block).max() / 127
        # The scale is a float32. Below its smallest normal numbers it is rounded, by at most one of them for each of 127 steps.
        allowed = step * 1.0001 + 127 * float(np.finfo(np.float32).smallest_subnormal)
        assert (np.abs(block - read_block) <= allowed).all()
        assert (read_block[block == 0] == 0).all()


def test_int8_is_right_on_average() -> None:
    delta = random_delta(2)[:BLOCK]
    mean = np.mean([as_read(delta, "int8", np.random.default_rng(seed)) for seed in range(400)], axis=0)
    step = float(np.abs(delta).max()) / 127
    assert np.abs(mean - delta).max() < 5 * step / 2 / 400**0.5  # five standard errors of the widest rounding


def test_what_rounding_takes_comes_with_the_next_update() -> None:
    """Error feedback: over rounds, the sum of the values read differs from the learnt sum by at most one rounding."""
    residual, learnt, sent = np.zeros(SLICE, np.float32), np.zeros(SLICE), np.zeros(SLICE)
    for number in range(20):
        delta = np.random.default_rng(number).normal(0, 1e-3, SLICE).astype(np.float32)
        fed_back = delta + residual
        read = as_read(fed_back, "int8", np.random.default_rng([number, 1]))
        residual = fed_back - read
        learnt, sent = learnt + delta, sent + read
    assert np.abs(learnt - sent - residual).max() < 1e-6
    assert np.abs(learnt - sent).max() < 1.1 * np.abs(fed_back).max() / 127


def open_update(path: Path, form: UpdateFormat, stack: ExitStack) -> SliceReader:
    file = stack.enter_context(HashingReader(path))
    file.read_into(np.empty(len(form.header), np.uint8))
    return SliceReader(form, file.read_into)


@pytest.mark.parametrize("encoding", ["fp32", "bf16", "int8"])
def test_updates_that_are_read_by_turns_keep_their_own_place_and_scales(
    encoding: UpdateEncoding, tmp_path: Path
) -> None:
    form, expected = update_format(LAYOUT, encoding), []
    for seed in (1, 2):
        _, as_sent = write_update(tmp_path / f"{seed}", form, random_delta(seed), np.random.default_rng(seed))
        expected.append(as_sent)
    rows = np.empty((2, LAYOUT.values), np.float32)
    with ExitStack() as stack:
        readers = [open_update(tmp_path / f"{seed}", form, stack) for seed in (1, 2)]
        for start in range(0, LAYOUT.values, SLICE):
            for reader, row in zip(readers, rows, strict=True):
                reader.read(row[start : start + SLICE])
    assert rows.tobytes() == np.array(expected).tobytes()


@pytest.mark.parametrize("encoding", ["fp32", "bf16", "int8"])
def test_reading_past_the_end_of_an_update_is_an_error(encoding: UpdateEncoding, tmp_path: Path) -> None:
    form, row = update_format(LAYOUT, encoding), np.empty(SLICE, np.float32)
    write_update(tmp_path / "u", form, random_delta(1), np.random.default_rng(1))
    with ExitStack() as stack:
        reader = open_update(tmp_path / "u", form, stack)
        for start in range(0, LAYOUT.values, SLICE):
            reader.read(row[: LAYOUT.values - start])
        with pytest.raises(Corrupt, match="more bytes"):
            reader.read(row[:1])


def test_the_sizes_of_blocks_and_slices_are_those_of_the_protocol() -> None:
    assert (BLOCK, SLICE) == (1024, 256 * 1024)


def test_scales_from_the_network_that_are_no_numbers_raise_no_warning() -> None:
    out = np.empty(3, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(np.array([0, 1, 255], np.uint8), np.array([np.inf], np.float32), "int8", out)
        assert np.isnan(out[0])
        assert out[1:].tolist() == [math.inf, -math.inf]
        decode(np.array([0, 127, 1], np.uint8), np.array([3e38], np.float32), "int8", out)
    assert out[1] == math.inf


def test_a_masked_update_is_a_tail_and_the_values_and_is_never_decoded(tmp_path: Path) -> None:
    form = update_format(LAYOUT, "ring32")
    numbers = np.random.default_rng(2).integers(0, 2**32, TAIL + LAYOUT.values, dtype=np.uint32)
    manifest = write_masked(tmp_path / "u", form, (numbers[:10], numbers[10:]))
    assert manifest.size_bytes == form.size_bytes == (tmp_path / "u").stat().st_size
    assert form.size_bytes == len(form.header) + 4 * (TAIL + LAYOUT.values)
    stored = load_file(tmp_path / "u")
    assert stored["tail"].shape == (64,), "other releases write as many"
    assert np.array_equal(stored["tail"], numbers[:TAIL])
    assert np.array_equal(stored["values"], numbers[TAIL:])
    with pytest.raises(WrongLayout):
        write_masked(tmp_path / "v", form, [numbers[1:]])
    with pytest.raises(TypeError, match="fp32 is not"):
        write_masked(tmp_path / "w", update_format(LAYOUT, "fp32"), [numbers])
    with pytest.raises(TypeError, match="added, not decoded"):
        write_update(tmp_path / "w", form, random_delta(0), np.random.default_rng(0))
    with pytest.raises(TypeError, match="added, not decoded"):
        SliceReader(form, lambda _: None)
    alone = update_format(layout_of([]), "ring32")  # the scores of the last version travel without values
    write_masked(tmp_path / "x", alone, [numbers[:TAIL]])
    assert load_file(tmp_path / "x")["values"].shape == (0,)
