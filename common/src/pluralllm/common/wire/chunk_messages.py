"""Messages that carry a chunk: written with one copy of its bytes, read with none.

protobuf in Python copies a field of bytes when a message is built, when it is written, when it is read, and at every look at
it; four copies of every byte that travels are a tenth of a round. Source of the encoding: protobuf's guide, length-delimited
records; the fields of a message may follow one another in any order, so a message and one more field are a message.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import DecodeError

from pluralllm.common.weights.chunks import CHUNK_BYTES
from pluralllm.v1 import federation_pb2 as pb

PUT_CHUNKS = "/pluralllm.v1.FederationService/PutChunks"
GET_CHUNKS = "/pluralllm.v1.FederationService/GetChunks"

M = TypeVar("M", pb.PutChunksRequest, pb.GetChunksResponse)


@dataclass(frozen=True, slots=True)
class ChunkMessage(Generic[M]):
    """A message and the bytes of its field `data`, which the message itself may lack."""

    facts: M
    data: bytes | memoryview


def write_chunk(facts: M, data: bytes) -> bytes:
    """The message with this data, serialized; `facts.data` is empty."""
    return b"".join((facts.SerializeToString(), _mark(type(facts), len(data)), data))


def model_chunk(index: int, data: bytes) -> bytes:
    """One chunk of a model version, as GetChunks sends it."""
    return write_chunk(pb.GetChunksResponse(index=index), data)


def chunk_reader(kind: type[M]) -> Callable[[bytes], ChunkMessage[M]]:
    """Reads what `write_chunk`, or any other protobuf, wrote. The reader raises DecodeError."""
    mark = _mark(kind, CHUNK_BYTES)

    def read(raw: bytes) -> ChunkMessage[M]:
        # If all before the mark is a message by itself, then protobuf would take what follows for the data too.
        start = len(raw) - CHUNK_BYTES
        if raw[max(0, start - len(mark)) : max(0, start)] == mark:
            with contextlib.suppress(DecodeError):
                return ChunkMessage(kind.FromString(raw[: start - len(mark)]), memoryview(raw)[start:])
        message = kind.FromString(raw)
        return ChunkMessage(message, message.data)

    return read


def _mark(kind: type[Any], size: int) -> bytes:
    """The tag and the length that come before `size` bytes of data."""
    return _varint(kind.DESCRIPTOR.fields_by_name["data"].number << 3 | 2) + _varint(size)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first, each byte but the last marked."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
