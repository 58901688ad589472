"""What comes in, looked at before any handler: bytes that are no message, and text that no database keeps.

Both are refused as any bad argument is; gRPC by itself would answer bytes that it cannot read with UNKNOWN.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.wire.chunk_messages import ChunkMessage

NUL = "\0"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """In place of a request: whoever would answer it refuses it."""

    method: str


def forgiving(method: str, inner: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """A reader of requests that raises nothing: what cannot be read is Unreadable."""

    def read(raw: bytes) -> Any:
        try:
            return inner(raw)
        except DecodeError:
            return Unreadable(method)

    return read


def check_request(request: Any) -> None:
    """Raises InvalidArgument."""
    if isinstance(request, Unreadable):
        raise InvalidArgument(field="request", problem=f"its bytes are no message that {request.method} takes")
    message = request.facts if isinstance(request, ChunkMessage) else request
    if isinstance(message, Message):
        for field, text in _texts(message):
            if NUL in text:  # PostgreSQL has none in text, and no name or reason needs one
                raise InvalidArgument(field=field, problem="has a NUL character (U+0000); leave it out")


def _texts(message: Message) -> Iterator[tuple[str, str]]:
    """Every text in a message, however deep, with its field's name."""
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            yield from ((field.name, key) for key in value if isinstance(key, str))
            yield from ((field.name, found) for found in value.values() if isinstance(found, str))
        elif field.type == FieldDescriptor.TYPE_STRING:
            yield from ((field.name, text) for text in (value if field.is_repeated else (value,)))
        elif field.message_type is not None:
            for inner in value if field.is_repeated else (value,):
                yield from _texts(inner)
