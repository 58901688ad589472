import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from pluralllm.common.errors.tree import DigestMismatch, OverLimit, WrongLayout
from pluralllm.common.predictor.architecture import initial_values, parameters
from pluralllm.common.weights.chunks import CHUNK_BYTES, checked_manifest, manifest_of, missing_ranges
from pluralllm.common.weights.layout import (
    DTYPE_BYTES,
    MAX_DIMENSIONS,
    MAX_HEADER_BYTES,
    MAX_VALUES,
    SHOWN_CHARACTERS,
    Layout,
    check_header,
    layout_of,
    read_header,
    read_layout,
    rewards_layout,
    tensors_of,
    write_weights,
)
from pluralllm.common.words.predictors import NeuralProcess


def test_what_is_written_is_safetensors_that_anybody_reads(tmp_path: Path) -> None:
    found = parameters(NeuralProcess(), 384)
    layout = layout_of((parameter.name, parameter.shape) for parameter in found)
    manifest = write_weights(tmp_path / "m", layout, (initial_values(p, 1).ravel() for p in found))
    theirs, ours = load_file(tmp_path / "m"), tensors_of(tmp_path / "m")
    assert theirs.keys() == ours.keys()
    assert all(np.array_equal(theirs[name], ours[name]) for name in ours)
    assert manifest_of(tmp_path / "m") == manifest
    assert read_layout(tmp_path / "m") == layout


@pytest.mark.parametrize("change_bytes", [-4, -1, 1, 4])
def test_a_file_that_is_longer_or_shorter_than_its_header_says_is_refused(tmp_path: Path, change_bytes: int) -> None:
    layout, path = layout_of([("a", (2, 3)), ("b", (5,))]), tmp_path / "m"
    write_weights(path, layout, [np.ones(11, np.float32)])
    check_header(path, layout.header, layout.size_bytes)
    assert read_layout(path) == layout
    content = path.read_bytes()
    path.write_bytes(content + bytes(change_bytes) if change_bytes > 0 else content[:change_bytes])
    with pytest.raises(WrongLayout):
        check_header(path, layout.header, layout.size_bytes)
    for read in (read_layout, tensors_of):
        with pytest.raises(WrongLayout, match="not float32, sorted by name and contiguous"):
            read(path)


@pytest.mark.parametrize(("dimension", "count"), [(384, 713_218), (4096, 1_188_354)])
def test_the_paper_predictor_has_the_published_number_of_parameters(dimension: int, count: int) -> None:
    assert layout_of((p.name, p.shape) for p in parameters(NeuralProcess(), dimension)).values == count


def test_first_values_depend_on_seed_and_name_alone() -> None:
    few, many = parameters(NeuralProcess(layers=2), 384), parameters(NeuralProcess(layers=3), 384)
    same = {p.name: initial_values(p, 5) for p in many}
    assert all(np.array_equal(initial_values(p, 5), same[p.name]) for p in few)
    weight = next(p for p in few if p.name == "head.0.weight")
    assert not np.array_equal(initial_values(weight, 5), initial_values(weight, 6))
    assert float(np.abs(initial_values(weight, 5)).max()) <= weight.bound


@given(st.sets(st.integers(0, 60)))
def test_ranges_name_each_missing_chunk_once(missing: set[int]) -> None:
    ranges = missing_ranges(missing)
    assert [index for first, last in ranges for index in range(first, last + 1)] == sorted(missing)
    assert all(later[0] > earlier[1] + 1 for earlier, later in itertools.pairwise(ranges))


def test_a_manifest_that_does_not_fit_its_digest_or_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"x" * (CHUNK_BYTES + 5))
    good = manifest_of(tmp_path / "blob")
    limit = 2 * CHUNK_BYTES
    assert checked_manifest(good.digest, good.size_bytes, CHUNK_BYTES, good.chunk_hashes, limit) == good
    with pytest.raises(DigestMismatch):
        checked_manifest("0" * 64, good.size_bytes, CHUNK_BYTES, good.chunk_hashes, limit)
    with pytest.raises(OverLimit, match="size_bytes"):
        checked_manifest(good.digest, good.size_bytes, CHUNK_BYTES, good.chunk_hashes, CHUNK_BYTES)
    with pytest.raises(OverLimit, match="hashes"):
        checked_manifest(good.digest, good.size_bytes, CHUNK_BYTES, good.chunk_hashes[:1], limit)
    with pytest.raises(OverLimit, match="chunk_bytes"):
        checked_manifest(good.digest, good.size_bytes, 7, good.chunk_hashes, limit)


def test_a_file_of_another_layout_is_refused_with_few_of_its_own_words(tmp_path: Path) -> None:
    layout = layout_of([("a", (2,))])
    for name, shape in (("A" * 100_000, (2,)), ("a", (1,) * 100_000)):
        save_file({name: np.zeros(shape[:1], np.float32)}, tmp_path / "m")
        if len(shape) > 1:
            header = json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
            (tmp_path / "m").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
        with pytest.raises(WrongLayout) as refusal:
            check_header(tmp_path / "m", layout.header, layout.size_bytes)
        assert len(str(refusal.value)) < 400


# Headers near their limits


def header_with(shape: object, name: str = "a", size: object = None) -> bytes:
    """Returns the header of a file with one tensor of this shape, in the canonical form."""
    count = size if size is not None else 4
    text = json.dumps(
        {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, count]}}, separators=(",", ":")
    ).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def layout_in(folder: Path, header: bytes, payload_bytes: int = 4) -> Layout:
    path = folder / "m"
    path.write_bytes(header + bytes(payload_bytes))
    return read_layout(path)


def test_the_limits_of_headers_are_those_of_the_documentation() -> None:
    assert (MAX_HEADER_BYTES, MAX_DIMENSIONS, MAX_VALUES, SHOWN_CHARACTERS) == (1024 * 1024, 8, 2**40, 100)
    assert DTYPE_BYTES == {"F32": 4, "BF16": 2, "I8": 1, "U32": 4}


@pytest.mark.parametrize(
    ("shape", "is_allowed"),
    [
        ([1] * 8, True),
        ([1] * 9, False),
        ([], True),
        ([True], False),
        ([1.0], False),
        ([-1], False),
        (["x"], False),
        ([None], False),
        ("1", False),
        (1, False),
    ],
)
def test_a_shape_is_at_most_eight_whole_numbers(tmp_path: Path, shape: object, is_allowed: bool) -> None:
    if is_allowed:
        assert layout_in(tmp_path, header_with(shape)).values == 1
    else:
        with pytest.raises(WrongLayout):
            layout_in(tmp_path, header_with(shape))


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ([2**40], "not float32, sorted by name and contiguous"),  # allowed, but the file is too short
        ([2**40, 1], "not float32, sorted by name and contiguous"),
        ([2**40 + 1], "a shape is at most 8 whole numbers"),
        ([2**20, 2**20], "not float32, sorted by name and contiguous"),
        ([2**20, 2**20 + 1], "a tensor is too large"),
        ([2**20, 0, 2**20 + 1], "a tensor is too large"),
        ([0, 3], "not float32, sorted by name and contiguous"),
    ],
)
def test_a_tensor_has_at_most_two_to_the_power_of_forty_values(tmp_path: Path, shape: list[int], problem: str) -> None:
    with pytest.raises(WrongLayout, match=problem):
        layout_in(tmp_path, header_with(shape))


def test_half_of_a_surrogate_pair_is_no_name(tmp_path: Path) -> None:
    assert layout_in(tmp_path, header_with([1], "\u00e9")).values == 1
    with pytest.raises(WrongLayout, match="surrogates not allowed"):
        layout_in(tmp_path, header_with([1], "\ud800"))


def test_a_tensor_without_values_is_allowed(tmp_path: Path) -> None:
    assert layout_in(tmp_path, header_with([0], size=0), 0).values == 0


def test_a_header_is_at_most_a_mebibyte_long() -> None:
    for length, is_allowed in ((MAX_HEADER_BYTES, True), (MAX_HEADER_BYTES + 1, False)):
        file = io.BytesIO(length.to_bytes(8, "little") + b"x" * length)
        if is_allowed:
            assert len(read_header(file)) == 8 + length
        else:
            with pytest.raises(WrongLayout, match="not a safetensors file"):
                read_header(file)
    for short in (b"", b"1234567"):
        with pytest.raises(WrongLayout, match="not a safetensors file"):
            read_header(io.BytesIO(short))
    assert read_header(io.BytesIO(bytes(8))) == bytes(8)


def test_metadata_and_other_orders_are_not_the_layout_of_this_project(tmp_path: Path) -> None:
    both = {name: {"dtype": "F32", "shape": [1], "data_offsets": [at, at + 4]} for name, at in (("b", 0), ("a", 4))}
    broken: tuple[object, ...] = (
        both,
        {"__metadata__": {"x": "y"}, **both},
        {"a": {"dtype": "F32"}},
        [],
        {"\ud800": both["a"]},
    )
    for entries in broken:
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with pytest.raises(WrongLayout):
            layout_in(tmp_path, len(text).to_bytes(8, "little") + text, 8)


def test_a_value_is_found_in_its_tensor() -> None:
    layout = layout_of([("b", (2, 3)), ("a", (2,)), ("c", ())])
    assert [layout.tensor_at(position) for position in (0, 1, 2, 7, 8)] == ["a", "a", "b", "b", "c"]
    with pytest.raises(IndexError):
        layout.tensor_at(9)
    assert (layout.values, layout.size_bytes) == (9, len(layout.header) + 36)
    assert len(layout.header) % 8 == 0


def test_a_difference_is_named_by_the_first_tensor(tmp_path: Path) -> None:
    layout, path = layout_of([("a", (2,)), ("b", (3,))]), tmp_path / "m"
    for tensors, problem in (
        ({"a": (2,), "b": (3,), "c": (1,)}, r"tensor c is \('F32', \(1,\)\), expected absent"),
        ({"b": (3,)}, r"tensor a is absent, expected \('F32', \(2,\)\)"),
        ({"a": (3,), "b": (2,)}, r"tensor a is \('F32', \(3,\)\), expected \('F32', \(2,\)\)"),
    ):
        save_file({name: np.zeros(shape, np.float32) for name, shape in tensors.items()}, path)
        with pytest.raises(WrongLayout, match=problem):
            check_header(path, layout.header, layout.size_bytes)
    save_file({"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)}, path, {"x": "y"})
    with pytest.raises(WrongLayout, match="another order, or the file holds metadata"):
        check_header(path, layout.header, layout.size_bytes)


def test_tensors_are_views_of_the_payload_in_order(tmp_path: Path) -> None:
    layout = layout_of([("b", (2, 3)), ("a", (2,))])
    write_weights(tmp_path / "m", layout, [np.arange(8, dtype=np.float32)])
    tensors = tensors_of(tmp_path / "m")
    assert tensors["a"].tolist() == [0, 1]
    assert tensors["b"].tolist() == [[2, 3, 4], [5, 6, 7]]
    with pytest.raises(WrongLayout):
        write_weights(tmp_path / "m", layout, [np.arange(7, dtype=np.float32)])
    assert rewards_layout(5) == layout_of([("rewards", (5,))])
