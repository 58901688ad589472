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
from pluralllm.common.weights.layout import check_header, layout_of, read_layout, tensors_of, write_weights
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
