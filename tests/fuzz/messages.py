"""Strategies for messages of a descriptor, with edge values and real names in the fields, and for bytes that are no message."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]
RealValues = Callable[[str], Sequence[Any]]  # returns the current real values for a field of this name
Change = tuple[tuple[str, ...], Any, Any]  # the path of field names, the descriptor of the changed field, the new value
MAX_DEPTH = 4
MAX_REPEATED = 3
LONG = 100_000

TEXTS = [
    "",
    "\0",
    "ann\0",
    "-",
    "runs/-",
    "runs/" + "a" * 100,
    "runs/first\n",
    "members/../admin",
    "../../etc/passwd",
    "{name} %s {0}",
    "\ufffe\u202e\u200b",
    "é",
    "🜁" * 300,
    "٣",  # a digit outside of ASCII
    "\r\ngrpc-status: 0",
    "9" * 18,
    "9" * 30,
    "x" * 300,
    "y" * LONG,
]
BYTES = [b"", b"\0", b"\xff" * 40, b"{}", b"null", b"[" * 5000, b"-----BEGIN CERTIFICATE-----\n", b"z" * LONG]
FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-320, 1e308, -1e308, float("inf"), -float("inf"), float("nan")]
# Drawn numbers, taken modulo the length of a list: the length may vary, the range of a draw must not.
INDICES = st.integers(0, 2**12)
UNKNOWN_FIELDS = [b"", b"", b"", b"\xfa\x3f\x03abc", b"\xf8\x3f\x01" * 50, b"\xfd\x3f\0\0\0\0", b"\xfb\x3f\xfc\x3f"]
BROKEN = [
    b"\x0a\xff\xff\xff\xff\x0f",  # a text longer than the message
    b"\x0a\x02\xc3\x28",  # a text that is not UTF-8
    b"\x0a\x03\xed\xa0\x80",  # half of a surrogate pair
    b"\x08" + b"\xff" * 11,  # a number without an end
    b"\x00\x00",  # field number 0
    b"\x0b" * 200,  # groups in groups
    b"\x0c",  # the end of a group that never began
    b"\x22\x04\x0a\x02\x0a\x09",
    b"\xff",
]


WHOLE_NUMBERS = {  # the least and the greatest value of each kind
    getattr(FieldDescriptor, f"TYPE_{word}{bits}"): (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if signed
    else (0, 2**bits - 1)
    for signed, words in ((True, ("INT", "SINT", "SFIXED")), (False, ("UINT", "FIXED")))
    for word in words
    for bits in (32, 64)
} | {FieldDescriptor.TYPE_ENUM: (-(2**31), 2**31 - 1)}
NOTHING = object()  # stands for the absence of a value
TEXT_AND_FLOAT_EDGES: dict[int, list[Any]] = {
    FieldDescriptor.TYPE_DOUBLE: FLOATS,
    FieldDescriptor.TYPE_FLOAT: FLOATS,
    FieldDescriptor.TYPE_BOOL: [False, True],
    FieldDescriptor.TYPE_STRING: TEXTS,
    FieldDescriptor.TYPE_BYTES: BYTES,
}
EDGES = TEXT_AND_FLOAT_EDGES | {
    kind: [0, 1, 2, *(n for n in (low, low + 1, -1, 2**31 - 1, 10**9, high - 1, high) if low <= n <= high)]
    for kind, (low, high) in WHOLE_NUMBERS.items()
}
ANY: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_DOUBLE: st.floats(),
    FieldDescriptor.TYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_STRING: st.text(max_size=20),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=40),
} | {kind: st.integers(*ends) for kind, ends in WHOLE_NUMBERS.items()}


def at_the_edges(good: Message, real_values: RealValues) -> Iterator[Message]:
    """Yields the message with each of its fields set to each edge value and each real value in turn."""
    for path, field, value in _changes(good, real_values, ()):
        message = type(good)()
        message.CopyFrom(good)
        inner: Any = message
        for name in path:
            inner = getattr(inner, name)
        if value is NOTHING:
            inner.ClearField(field.name)
        elif isinstance(value, dict):
            getattr(inner, field.name).update(value)
        elif field.is_repeated:
            getattr(inner, field.name).append(value)
        else:
            setattr(inner, field.name, value)
        yield message


def _changes(message: Message, real_values: RealValues, path: tuple[str, ...]) -> Iterator[Change]:
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            keys, values = (EDGES[inner.type] for inner in field.message_type.fields)
            yield from ((path, field, {key: 1}) for key in keys)
            yield from ((path, field, {"loss": value}) for value in values)
        elif field.message_type is not None:
            yield path, field, NOTHING
            if not field.is_repeated:
                yield from _changes(getattr(message, field.name), real_values, (*path, field.name))
        else:
            real = [value for value in real_values(field.name) if not isinstance(value, st.SearchStrategy)]
            yield from ((path, field, value) for value in (*EDGES[field.type], *real))


@st.composite
def any_message(draw: Draw, descriptor: Descriptor, real_values: RealValues) -> Message:
    """Draws a message with most of its fields set."""
    return _any(draw, descriptor, real_values, MAX_DEPTH)


@st.composite
def nearly(draw: Draw, good: Callable[[], Message], real_values: RealValues) -> Message:
    """Draws a copy of a good message with at most two fields changed."""
    message = type(good())()
    message.CopyFrom(good())
    for _ in range(draw(st.integers(0, 2))):
        _change(draw, message, real_values)
    return message


@st.composite
def on_the_wire(draw: Draw, messages: st.SearchStrategy[Message]) -> bytes:
    """Draws the bytes of a message, sometimes with unknown fields."""
    made: Message = draw(messages)
    unknown: bytes = draw(st.sampled_from(UNKNOWN_FIELDS))
    return made.SerializeToString() + unknown


@st.composite
def no_message(draw: Draw, good: Callable[[], Message]) -> bytes:
    """Draws bytes that are no message: noise, or a message that is cut, changed or mixed with other bytes."""
    whole = good().SerializeToString()
    if draw(st.booleans()):
        return bytes(draw(st.binary(max_size=60) | st.sampled_from(BROKEN)))
    at, more = draw(INDICES) % (len(whole) + 1), draw(st.binary(max_size=4) | st.sampled_from(BROKEN))
    return whole[:at] + bytes(more) + whole[at + draw(st.integers(0, 4)) :]


@st.composite
def spoilt_json(draw: Draw, good: bytes) -> bytes:
    """Draws a JSON object with one value changed somewhere."""
    whole = json.loads(good)
    place = whole
    while True:
        key = draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key]:
            break
        place = place[key]
    place[key] = draw(
        st.sampled_from([None, [], {}, "", "\0", "a\0", "x" * 300, "é", "paper", True, 1e-320, 1e308, 0, -1])
        | st.sampled_from([10**5, 10**6, 10**9, 2**63, 10**30, -(10**30), float("nan"), float("inf"), ["\0"], [[]]])
        | st.integers(1, 40)
    )
    return json.dumps(whole).encode()


def _any(draw: Draw, descriptor: Descriptor, real_values: RealValues, depth: int) -> Message:
    message = message_factory.GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if draw(st.integers(0, 3)):
            _set(draw, message, field, real_values, depth)
    return message


def _change(draw: Draw, message: Message, real_values: RealValues) -> None:
    fields = message.DESCRIPTOR.fields
    if not fields:
        return
    field = draw(st.sampled_from(list(fields)))
    inside = field.message_type is not None and not field.is_repeated and message.HasField(field.name)
    if inside and draw(st.booleans()):
        _change(draw, getattr(message, field.name), real_values)
    else:
        message.ClearField(field.name)
        _set(draw, message, field, real_values, MAX_DEPTH)


def _set(draw: Draw, message: Message, field: FieldDescriptor, real_values: RealValues, depth: int) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        keys, values = field.message_type.fields
        for _ in range(draw(st.integers(0, MAX_REPEATED))):
            getattr(message, field.name)[_value(draw, keys, real_values, depth)] = _value(
                draw, values, real_values, depth
            )
    elif field.is_repeated:
        new_values = [_value(draw, field, real_values, depth) for _ in range(draw(st.integers(0, MAX_REPEATED)))]
        getattr(message, field.name).extend(new_values)
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(_value(draw, field, real_values, depth))
    else:
        setattr(message, field.name, _value(draw, field, real_values, depth))


def _value(draw: Draw, field: FieldDescriptor, real_values: RealValues, depth: int) -> Any:
    if field.message_type is not None:
        if not depth:
            return message_factory.GetMessageClass(field.message_type)()
        return _any(draw, field.message_type, real_values, depth - 1)
    if field.enum_type is not None and draw(st.booleans()):
        return draw(st.sampled_from([value.number for value in field.enum_type.values]))
    if (real := real_values(field.name)) and draw(st.integers(0, 2)):
        value_or_strategy = real[draw(INDICES) % len(real)]
        return draw(value_or_strategy) if isinstance(value_or_strategy, st.SearchStrategy) else value_or_strategy
    return draw(st.sampled_from(EDGES[field.type]) | ANY[field.type])
