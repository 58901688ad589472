"""Writes messages that carry a chunk with one copy of the chunk's bytes, and reads such messages with no copy.

In Python, protobuf copies a field of bytes when a message is built, written and read, and at every access to the field. These
four copies would take a tenth of a round's time. So this module writes and reads the field `data` without protobuf.
The fields of a message may stand in any order, so the bytes of a message followed by one more field are a valid message.
Source: protobuf's guide to its encoding, section on length-delimited records.
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
    """A message, and separately the bytes of its field `data`. The field in the message itself may be empty."""

    facts: M
    data: bytes | memoryview


def write_chunk(facts: M, data: bytes | memoryview) -> bytes:
    """Returns a serialized message with the bytes of a chunk in its field `data`.

    facts: the message with all other fields; its field `data` must be empty. data: the bytes of the chunk.
    """
    return b"".join((facts.SerializeToString(), _mark(type(facts), len(data)), data))


def model_chunk(index: int, data: bytes) -> bytes:
    """Returns one chunk of a model version as a serialized GetChunksResponse. index: number of the chunk. data: its bytes."""
    return write_chunk(pb.GetChunksResponse(index=index), data)


def chunk_reader(kind: type[M]) -> Callable[[bytes], ChunkMessage[M]]:
    """Returns a function that parses serialized messages of one type, written by `write_chunk` or by any protobuf library.

    kind: the message type. The returned function raises DecodeError for bytes that are not a message of this type. The
    function copies the bytes of `data` only if these bytes are not a whole chunk at the end of the message.
    """
    mark = _mark(kind, CHUNK_BYTES)

    def read(raw: bytes) -> ChunkMessage[M]:
        # If the bytes before the mark are a message by themselves, then protobuf, too, reads what follows the mark as the data.
        start = len(raw) - CHUNK_BYTES
        if raw[max(0, start - len(mark)) : max(0, start)] == mark:
            with contextlib.suppress(DecodeError):
                return ChunkMessage(kind.FromString(raw[: start - len(mark)]), memoryview(raw)[start:])
        message = kind.FromString(raw)
        return ChunkMessage(message, message.data)

    return read


def _mark(kind: type[Any], size: int) -> bytes:
    """Returns the tag and the length that protobuf writes before `size` bytes in the field `data`. kind: the message type."""
    return _varint(kind.DESCRIPTOR.fields_by_name["data"].number << 3 | 2) + _varint(size)


def _varint(number: int) -> bytes:
    """Encodes a number as protobuf's varint: 7 bits in each byte, the lowest first; bit 7 is set in all bytes but the last."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
