"""Chunk messages are written and read without protobuf's copies, and with the same results."""

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from pluralllm.common.weights.chunks import CHUNK_BYTES
from pluralllm.common.wire.chunk_messages import chunk_reader, write_chunk
from pluralllm.v1 import federation_pb2 as pb

SIZES = st.integers(0, 300) | st.sampled_from([16_383, 16_384, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1])
WHOLE = b"w" * CHUNK_BYTES
REST = pb.PutChunksRequest(data=WHOLE).SerializeToString()
get_reader, put_reader = chunk_reader(pb.GetChunksResponse), chunk_reader(pb.PutChunksRequest)


@given(st.integers(0, 2**31 - 1), SIZES)
def test_what_is_written_is_what_protobuf_would_write(index: int, size: int) -> None:
    data = b"w" * size
    made = write_chunk(pb.GetChunksResponse(index=index), data)
    assert pb.GetChunksResponse.FromString(made) == pb.GetChunksResponse(index=index, data=data)
    if size:
        assert made == pb.GetChunksResponse(index=index, data=data).SerializeToString()


@given(st.integers(0, 2**31 - 1), st.text(max_size=90), SIZES)
def test_what_protobuf_wrote_is_read(index: int, text: str, size: int) -> None:
    data = b"w" * size
    got = get_reader(pb.GetChunksResponse(index=index, data=data).SerializeToString())
    assert (got.facts.index, bytes(got.data)) == (index, data)
    sent = pb.PutChunksRequest(task=text, digest=text, index=index, data=data)
    put = put_reader(sent.SerializeToString())
    assert (put.facts.task, put.facts.digest, put.facts.index, bytes(put.data)) == (text, text, index, data)


@given(st.binary(max_size=40), st.sampled_from([b"", REST, WHOLE]))
@example(b"\x0a\xff\xff\x3f", REST)  # a task whose length reaches into the data
@example(b"\x0a\x84\x80\x40", REST)  # a task that ends where the data ends
@example(b"\x22\x84\x80\x40", REST)  # data that hold what looks like the data's start, and end where it ends
@example(b"\x22\x83\x80\x40", REST)  # the same with one byte left
@example(b"\x22\x03abc", REST)  # the data twice: the last one counts
@example(b"\x0b", REST)  # a group that is not closed
def test_any_bytes_are_read_or_refused_as_protobuf_does(head: bytes, rest: bytes) -> None:
    expected = outcome(pb.PutChunksRequest.FromString, head + rest)
    assert outcome(put_reader, head + rest) == expected


def outcome(read: Any, raw: bytes) -> tuple[Any, ...] | None:
    try:
        message = read(raw)
    except DecodeError:
        return None
    facts = getattr(message, "facts", message)
    return facts.task, facts.digest, facts.index, bytes(message.data)


def test_a_whole_chunk_is_not_copied() -> None:
    raw = pb.PutChunksRequest(task="t", index=3, data=WHOLE).SerializeToString()
    data = put_reader(raw).data
    assert isinstance(data, memoryview)
    assert data.obj is raw
    alone = put_reader(REST).data  # a message with no other field
    assert isinstance(alone, memoryview)
    assert alone.obj is REST


def test_bytes_that_are_no_message_are_refused() -> None:
    with pytest.raises(DecodeError):
        put_reader(b"\xff\xff")
