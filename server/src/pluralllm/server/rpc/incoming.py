"""Checks every request before its handler: the bytes must be a valid message, and the database must accept its texts.

A bad request is refused as INVALID_ARGUMENT. Without the check, gRPC would answer unreadable bytes with UNKNOWN.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.wire.chunk_messages import ChunkMessage

NUL = "\0"
MAX_ENTRIES = 10_000  # texts or messages in one field; no call needs a tenth of it


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A placeholder for a request whose bytes are no valid message. `check_request` refuses the placeholder."""

    method: str


def forgiving(method: str, inner: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Wraps `inner`, the parser of an RPC's requests. `method` is the RPC's name.

    If `inner` raises DecodeError, the returned parser returns Unreadable instead, so that the wrapper around the RPC's handler
    can refuse the request.
    """

    def read(raw: bytes) -> Any:
        try:
            return inner(raw)
        except DecodeError:
            return Unreadable(method)

    return read


def check_request(request: Any) -> None:
    """Checks a request's form. Raises InvalidArgument if it is unreadable, has too many entries or a NUL character."""
    if isinstance(request, Unreadable):
        raise InvalidArgument(field="request", problem=f"its bytes are no message that {request.method} takes")
    message = request.facts if isinstance(request, ChunkMessage) else request
    if isinstance(message, Message):
        for field, text in _texts(message):
            if NUL in text:  # PostgreSQL cannot store it, and no name or reason needs it
                raise InvalidArgument(field=field, problem="has a NUL character (U+0000); leave it out")


def _texts(message: Message) -> Iterator[tuple[str, str]]:
    """Yields the field name and the value of every text in a message. Texts in nested messages are included.

    Raises InvalidArgument if a field has more than MAX_ENTRIES entries that would have to be read one by one.
    """
    for field, value in message.ListFields():
        is_read = field.message_type is not None or field.type == FieldDescriptor.TYPE_STRING
        if field.is_repeated and is_read and len(value) > MAX_ENTRIES:
            raise InvalidArgument(field=field.name, problem=f"has {len(value)} entries, more than {MAX_ENTRIES}")
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            yield from ((field.name, key) for key in value if isinstance(key, str))
            yield from ((field.name, text) for text in value.values() if isinstance(text, str))
        elif field.type == FieldDescriptor.TYPE_STRING:
            yield from ((field.name, text) for text in (value if field.is_repeated else (value,)))
        elif field.message_type is not None:
            for inner in value if field.is_repeated else (value,):
                yield from _texts(inner)
