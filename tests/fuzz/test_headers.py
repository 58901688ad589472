"""Weights files of strangers are read correctly or refused with one of our errors, in memory that fits their size.

The safetensors library accepts every file that we accept, and reads the same values. PLURALLLM_FAULTS=all tries many more
examples.
"""

import io
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load

from pluralllm.common.errors.tree import Refused, WrongLayout
from pluralllm.common.weights.chunks import HashingReader, manifest_of
from pluralllm.common.weights.layout import (
    MAX_HEADER_BYTES,
    check_header,
    flat_values,
    layout_of,
    read_header,
    read_layout,
    tensors_of,
)
from pluralllm.common.weights.update_format import BLOCK, SLICE, SliceReader, UpdateFormat, update_format, write_update
from pluralllm.common.words.spec import UpdateEncoding
from pluralllm.server.aggregation.update_files import check_update

ALL = os.environ.get("PLURALLLM_FAULTS") == "all"
ENCODINGS: tuple[UpdateEncoding, ...] = ("fp32", "bf16", "int8")
LAYOUT = layout_of([("a.weight", (30, 40)), ("b.bias", (7,)), ("c", ())])
OVERHEAD_BYTES = 2**20  # the memory that the reader needs for any file
TIMES_HEADER = 64  # an empty list takes two bytes of JSON and 64 bytes of memory
MANY: dict[str, Any] = {
    "max_examples": 5000 if ALL else 600,
    "derandomize": True,
    "database": None,
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
}

names = st.sampled_from(["a", "b", "", "\0", "é", "\ud800", "__metadata__", "x" * 300, "a.weight"]) | st.text(
    max_size=3
)
numbers = st.sampled_from([0, 1, 2, 3, -1, -2, 2**31, 2**32, 2**62, 2**63, 2**64, 10**30, 1.0, 0.5, True])
sizes: st.SearchStrategy[Any] = numbers | st.sampled_from([None, "1", [1], {}])
shapes = st.lists(sizes, max_size=3) | st.lists(st.integers(0, 3), max_size=3)
offsets = st.integers(-8, 64) | st.sampled_from([2**32, 2**63, 2**64 - 1, 10**30, 4.0, True, None, "0"])
entries = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "F64", "BF16", "I8", "F4", "f32", "", None, 4]), "shape": shapes},
    optional={"data_offsets": st.lists(offsets, max_size=3), "more": st.none()},
)
odd_json = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


def file_of(text: bytes, payload: bytes, longer_by: int = 0) -> bytes:
    return max(0, len(text) + longer_by).to_bytes(8, "little") + text + payload


@st.composite
def as_we_would_write(draw: Callable[..., Any]) -> bytes:
    """Draws a file as our writer makes it, with odd names and shapes."""
    tensors = draw(st.dictionaries(names, st.lists(numbers, max_size=3).map(tuple), max_size=3))
    try:
        layout = layout_of(tensors.items())
        size_bytes = int(layout.size_bytes) - len(layout.header)
    except (TypeError, ValueError, OverflowError):
        return b""
    return layout.header + bytes(min(max(0, size_bytes), 4096))


@st.composite
def nearly_right(draw: Callable[..., Any]) -> bytes:
    """Draws our own header with changed entries, padding or length, and a payload of about the right size."""
    whole = json.loads(LAYOUT.header[8:])
    for name in draw(st.lists(st.sampled_from(sorted(whole)), max_size=2)):
        match draw(st.integers(0, 3)):
            case 0:
                whole[name] = draw(entries)
            case 1:
                whole[name][draw(st.sampled_from(["dtype", "shape", "data_offsets"]))] = draw(odd_json | shapes)
            case 2:
                whole[draw(names)] = whole[name]
            case _:
                whole["__metadata__"] = draw(st.dictionaries(names, st.text(max_size=3), max_size=2) | odd_json)
    text = json.dumps(whole, separators=draw(st.sampled_from([(",", ":"), (", ", ": ")]))).encode()
    text += draw(st.sampled_from([b" " * (-len(text) % 8), b"", b"\n", b"\0", b"}", b",", b'{"a":1}']))
    payload = bytes(4 * LAYOUT.values + draw(st.sampled_from([0, 0, 0, -1, 1, -4, 4, 4096])))
    return file_of(text, payload, draw(st.sampled_from([0, 0, 0, 1, -1, 8, 2**20, 2**40])))


@st.composite
def odd_text(draw: Callable[..., Any]) -> bytes:
    """Draws JSON of foreign structure, or text that is not JSON."""
    whole = draw(st.dictionaries(names, entries | odd_json, max_size=3))
    text = json.dumps(whole).encode("utf-8", "surrogatepass")
    text = draw(
        st.sampled_from([text, text[:-1], text.replace(b'"a"', b'"b"'), b"\xff" + text, text.decode().encode("utf-16")])
    )
    return file_of(text, draw(st.binary(max_size=16)), draw(st.sampled_from([0, 0, -1, 1])))


DEEP = file_of(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"")
SHAPE = b'{"a":{"dtype":"F32","shape":%b,"data_offsets":[0,%b]}}'
files = st.one_of(as_we_would_write(), nearly_right(), odd_text(), st.binary(max_size=40))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("headers") / "file"


@settings(**MANY)
@given(content=files)
@example(content=b"")
@example(content=DEEP)
@example(content=file_of(b"[" * MAX_HEADER_BYTES, b""))
@example(content=file_of(b'{"a":' + b"[]," * 300_000 + b"0}", b""))
@example(content=file_of(b'{"a":[' + b"[]," * 300_000 + b"0]}", b""))
@example(content=file_of((SHAPE % (b"[true]", b"4")).ljust(64), bytes(4)))
@example(content=file_of(SHAPE % (b'["x",1000000000]', b"4"), b""))  # this once made a text of a gigabyte
@example(content=file_of((SHAPE % (b"[-1,-1]", b"4")).ljust(64), bytes(4)))
@example(content=file_of((SHAPE % (b"[1.0]", b"4.0")).ljust(64), bytes(4)))
@example(content=file_of((SHAPE % (b"[18446744073709551616,0]", b"0")).ljust(80), b""))
@example(content=file_of((SHAPE % (b"[4294967296,4294967296,0]", b"0")).ljust(80), b""))
@example(content=file_of((SHAPE.replace(b'"a"', b'"\\ud800"') % (b"[1]", b"4")).ljust(64), bytes(4)))
@example(content=file_of(b"{" + SHAPE[1:-1] % (b"[1]", b"4") + b"," + SHAPE[1:] % (b"[1]", b"4"), bytes(4)))
def test_a_model_file_is_read_as_the_library_reads_it_or_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    layout = bounded(lambda: read_layout(path), len(content))
    if layout is None:
        return
    assert layout.header == content[: len(layout.header)]
    theirs, ours = load(content), tensors_of(path)
    assert theirs.keys() == ours.keys()
    assert all(theirs[name].tobytes() == ours[name].tobytes() for name in ours)
    assert all(theirs[name].shape == ours[name].shape for name in ours)
    assert flat_values(path, layout).size == layout.values


@settings(**MANY)
@given(content=files, encoding=st.sampled_from(ENCODINGS))
@example(content=b"", encoding="fp32")
@example(content=DEEP, encoding="int8")
def test_an_update_of_any_header_is_that_of_its_run_or_refused(
    path: Path, content: bytes, encoding: UpdateEncoding
) -> None:
    path.write_bytes(content)
    form = update_format(LAYOUT, encoding)

    def check() -> bool:
        check_header(path, form.header, form.size_bytes)
        return True

    if bounded(check, len(content)):
        assert content[: len(form.header)] == form.header
        assert len(content) == form.size_bytes
        assert_taken_by_the_library(content)


@settings(**MANY)
@given(content=files)
def test_header_bytes_are_those_of_the_file(content: bytes) -> None:
    found = bounded(lambda: read_header(io.BytesIO(content)), len(content))
    assert found is None or content.startswith(found)


@settings(**MANY)
@given(
    st.sampled_from(ENCODINGS),
    st.sampled_from(b"\0\1\x7f"),
    st.binary(max_size=64),
    st.integers(0, 10**6),
    st.booleans(),
)
@example("int8", 1, b"\xff\xff\xff\x7f", 0, True)  # the first scale is NaN
@example("int8", 0, b"\0\0\x80\x7f", 0, True)  # infinite, of numbers that are 0
@example("int8", 127, b"\xff\xff\x7f\x7f", 0, True)  # the greatest number: times 127 it is infinite
@example("bf16", 0, b"\x80\x7f", 10, True)
@example("fp32", 127, b"", 0, True)  # squares beyond float32
def test_an_update_of_any_values_is_finite_and_bounded_or_refused(
    path: Path, encoding: UpdateEncoding, filler: int, values: bytes, place: int, is_whole: bool
) -> None:
    form = update_format(LAYOUT, encoding)
    payload = bytearray([filler] * (form.size_bytes - len(form.header)))
    place %= len(payload) - len(values)
    payload[place : place + len(values)] = values
    content = form.header + bytes(payload[: None if is_whole else place])
    path.write_bytes(content)
    norm = bounded(lambda: check_update(path, form, 1e30), len(content) + 4 * SLICE * 4)
    if norm is not None:
        assert is_whole
        read = decoded(path, form)
        assert np.isfinite(read).all()
        assert norm == pytest.approx(float(np.linalg.norm(read.astype(np.float64))), rel=1e-4)


@settings(**{**MANY, "max_examples": 500 if ALL else 60})
@given(
    st.sampled_from(ENCODINGS),
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 80)), min_size=1, max_size=3),
    st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**126), max_value=2.0**126),
        max_size=8,
    ),
    st.integers(0, 2**32),
)
def test_what_is_written_is_read_again_bit_for_bit(
    path: Path, encoding: UpdateEncoding, shapes: list[tuple[int, int]], edge_values: list[float], seed: int
) -> None:
    layout = layout_of((f"t{index}", shape) for index, shape in enumerate(shapes))
    form, rng = update_format(layout, encoding), np.random.default_rng(seed)
    delta = rng.normal(0, 1, layout.values).astype(np.float32)
    delta[: len(edge_values)] = np.array(edge_values, np.float32)[: delta.size]
    manifest, read = write_update(path, form, delta, rng)
    assert manifest == manifest_of(path)
    assert decoded(path, form).tobytes() == read.tobytes()
    assert encoding != "fp32" or read.tobytes() == delta.tobytes()
    check_header(path, form.header, form.size_bytes)
    assert_taken_by_the_library(path.read_bytes())
    if encoding == "fp32":
        assert read_layout(path) == layout


def bounded(work: Callable[[], Any], size_bytes: int) -> Any:
    """Returns the result of the work, or None if it refuses. Fails after any other error or if it needs too much memory."""
    tracemalloc.start()
    try:
        result = work()
    except Refused:
        result = None
    finally:
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak_bytes <= OVERHEAD_BYTES + TIMES_HEADER * size_bytes, f"{peak_bytes} bytes for {size_bytes}"
    return result


def assert_taken_by_the_library(content: bytes) -> None:
    try:
        load(content) if b'"BF16"' not in content[:4096] else None  # numpy has no such type
    except SafetensorError as error:
        raise AssertionError(f"we take what the library refuses: {error}") from error


def decoded(path: Path, form: UpdateFormat) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Returns the values of an update as the coordinator reads them."""
    values = np.empty(form.layout.values, np.float32)
    with HashingReader(path) as file:
        file.read_into(np.empty(len(form.header), np.uint8))
        reader = SliceReader(form, file.read_into)
        for start in range(0, values.size, SLICE):
            reader.read(values[start : start + SLICE])
    return values


def test_every_encoding_is_tried() -> None:
    assert set(ENCODINGS) == set(UpdateEncoding.__args__)  # type: ignore[attr-defined]
    assert LAYOUT.values > BLOCK, "int8 has more than one scale"
    with pytest.raises(WrongLayout):
        read_layout(Path(os.devnull))
