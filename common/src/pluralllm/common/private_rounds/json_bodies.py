"""Canonical JSON of the messages' dataclasses: one message has exactly one text, so that its SHA-256 names it.

Keys are sorted, there are no spaces, bytes are base64. A body that is read must be the canonical text of what it says.
"""

import base64
import functools
import json
import typing
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from pluralllm.common.errors.tree import InvalidArgument

Message = TypeVar("Message")


def canonical(value: object) -> bytes:
    """Returns the canonical JSON of a dataclass whose fields are texts, numbers, bytes, dataclasses and tuples of those."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _plain(value: object) -> Any:
    match value:
        case bytes():
            return base64.b64encode(value).decode()
        case tuple():
            return [_plain(one) for one in value]
        case str() | int():  # bool is an int
            return value
        case _ if is_dataclass(value) and not isinstance(value, type):
            return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    raise TypeError(f"{type(value).__name__} has no canonical JSON")


def read_canonical(kind: type[Message], body: bytes, max_bytes: int) -> Message:
    """Returns the message of a class that a body holds. max_bytes: size of the largest body that is read.

    Raises InvalidArgument, with the name of the field, if the body is no such message, or is not in canonical form.
    """
    if len(body) > max_bytes:
        raise InvalidArgument(field="body", problem=f"has {len(body)} bytes, at most {max_bytes} are read")
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(field="body", problem="is no JSON") from error
    message: Message = _typed(kind, data, "body")
    if canonical(message) != body:
        raise InvalidArgument(field="body", problem="is not in canonical form")
    return message


def _typed(kind: Any, data: Any, where: str) -> Any:
    """Returns JSON as a value of a type: bytes, text, number, truth value, tuple or dataclass."""
    if is_dataclass(kind) and isinstance(kind, type):
        types = _field_types(kind)
        if not isinstance(data, dict) or set(data) != set(types):
            raise InvalidArgument(field=where, problem=f"must have exactly the fields {', '.join(sorted(types))}")
        return kind(**{name: _typed(field_type, data[name], name) for name, field_type in types.items()})
    if typing.get_origin(kind) is tuple:
        if not isinstance(data, list):
            raise InvalidArgument(field=where, problem="must be a list")
        return tuple(_typed(typing.get_args(kind)[0], one, where) for one in data)
    expected = str if kind is bytes else kind
    if type(data) is not expected:
        raise InvalidArgument(field=where, problem=f"must be {'base64' if kind is bytes else expected.__name__}")
    if kind is not bytes:
        return data
    try:
        return base64.b64decode(data, validate=True)
    except ValueError as error:
        raise InvalidArgument(field=where, problem="is no base64") from error


@functools.cache
def _field_types(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}
