"""Messages made without protobuf's copies are what protobuf makes."""

from hypothesis import given
from hypothesis import strategies as st

from pluralllm.common.chunks import CHUNK_BYTES
from pluralllm.common.wire import chunk_message
from pluralllm.v1 import federation_pb2 as pb


@given(st.integers(0, 2**31 - 1), st.integers(0, 300) | st.sampled_from([16_383, 16_384, CHUNK_BYTES - 1, CHUNK_BYTES]))
def test_a_chunk_message_is_the_one_protobuf_would_make(index: int, size: int) -> None:
    data = b"w" * size
    made = pb.GetChunksResponse.FromString(chunk_message(index, data))
    assert (made.index, made.data) == (index, data)
    if size:
        assert chunk_message(index, data) == pb.GetChunksResponse(index=index, data=data).SerializeToString()
