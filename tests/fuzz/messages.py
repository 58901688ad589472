"""Any message of a descriptor: every kind of field with its edge values, real names where they fit; and bytes that are none."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]
Known = Callable[[str], Sequence[Any]]  # the real values for a field of this name, now
Change = tuple[tuple[str, ...], Any, Any]  # where (names of fields), which field's descriptor, to what
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
    "٣",  # a digit, and not of ASCII
    "\r\ngrpc-status: 0",
    "9" * 18,
    "9" * 30,
    "x" * 300,
    "y" * LONG,
]
BYTES = [b"", b"\0", b"\xff" * 40, b"{}", b"null", b"[" * 5000, b"-----BEGIN CERTIFICATE-----\n", b"z" * LONG]
FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-320, 1e308, -1e308, float("inf"), -float("inf"), float("nan")]
PLACES = st.integers(0, 2**12)  # in something whose length may differ from time to time: a draw may not
UNKNOWN_FIELDS = [b"", b"", b"", b"\xfa\x3f\x03abc", b"\xf8\x3f\x01" * 50, b"\xfd\x3f\0\0\0\0", b"\xfb\x3f\xfc\x3f"]
BROKEN = [
    b"\x0a\xff\xff\xff\xff\x0f",  # a text longer than the message
    b"\x0a\x02\xc3\x28",  # a text that is not UTF-8
    b"\x0a\x03\xed\xa0\x80",  # half of a surrogate pair
    b"\x08" + b"\xff" * 11,  # a number without an end
    b"\x00\x00",  # field number 0
    b"\x0b" * 200,  # groups in groups
    b"\x0c",  # the end of no group
    b"\x22\x04\x0a\x02\x0a\x09",
    b"\xff",
]


WHOLE_NUMBERS = {  # the least and the greatest
    getattr(FieldDescriptor, f"TYPE_{word}{bits}"): (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if signed
    else (0, 2**bits - 1)
    for signed, words in ((True, ("INT", "SINT", "SFIXED")), (False, ("UINT", "FIXED")))
    for word in words
    for bits in (32, 64)
} | {FieldDescriptor.TYPE_ENUM: (-(2**31), 2**31 - 1)}
NOTHING = object()  # in place of a value: none
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


def at_the_edges(good: Message, known: Known) -> Iterator[Message]:
    """The message, each of its fields at each edge of its kind and at each real value in turn."""
    for path, field, value in _changes(good, known, ()):
        made = type(good)()
        made.CopyFrom(good)
        part: Any = made
        for name in path:
            part = getattr(part, name)
        if value is NOTHING:
            part.ClearField(field.name)
        elif isinstance(value, dict):
            getattr(part, field.name).update(value)
        elif field.is_repeated:
            getattr(part, field.name).append(value)
        else:
            setattr(part, field.name, value)
        yield made


def _changes(part: Message, known: Known, path: tuple[str, ...]) -> Iterator[Change]:
    for field in part.DESCRIPTOR.fields:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            keys, values = (EDGES[inner.type] for inner in field.message_type.fields)
            yield from ((path, field, {key: 1}) for key in keys)
            yield from ((path, field, {"loss": value}) for value in values)
        elif field.message_type is not None:
            yield path, field, NOTHING
            if not field.is_repeated:
                yield from _changes(getattr(part, field.name), known, (*path, field.name))
        else:
            real = [value for value in known(field.name) if not isinstance(value, st.SearchStrategy)]
            yield from ((path, field, value) for value in (*EDGES[field.type], *real))


@st.composite
def any_message(draw: Draw, descriptor: Descriptor, known: Known) -> Message:
    """With most of its fields set."""
    return _any(draw, descriptor, known, MAX_DEPTH)


@st.composite
def nearly(draw: Draw, good: Callable[[], Message], known: Known) -> Message:
    """A message that would do, of which at most two fields are changed."""
    made = type(good())()
    made.CopyFrom(good())
    for _ in range(draw(st.integers(0, 2))):
        _change(draw, made, known)
    return made


@st.composite
def on_the_wire(draw: Draw, messages: st.SearchStrategy[Message]) -> bytes:
    """Serialized, sometimes with fields that nobody knows."""
    made: Message = draw(messages)
    unknown: bytes = draw(st.sampled_from(UNKNOWN_FIELDS))
    return made.SerializeToString() + unknown


@st.composite
def no_message(draw: Draw, good: Callable[[], Message]) -> bytes:
    """Any bytes: noise, a message cut short, with bytes changed, with others in between."""
    whole = good().SerializeToString()
    if draw(st.booleans()):
        return bytes(draw(st.binary(max_size=60) | st.sampled_from(BROKEN)))
    at, more = draw(PLACES) % (len(whole) + 1), draw(st.binary(max_size=4) | st.sampled_from(BROKEN))
    return whole[:at] + bytes(more) + whole[at + draw(st.integers(0, 4)) :]


@st.composite
def spoilt_json(draw: Draw, good: bytes) -> bytes:
    """A JSON object with one value changed, somewhere."""
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


def _any(draw: Draw, descriptor: Descriptor, known: Known, depth: int) -> Message:
    made = message_factory.GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if draw(st.integers(0, 3)):
            _set(draw, made, field, known, depth)
    return made


def _change(draw: Draw, made: Message, known: Known) -> None:
    fields = made.DESCRIPTOR.fields
    if not fields:
        return
    field = draw(st.sampled_from(list(fields)))
    inside = field.message_type is not None and not field.is_repeated and made.HasField(field.name)
    if inside and draw(st.booleans()):
        _change(draw, getattr(made, field.name), known)
    else:
        made.ClearField(field.name)
        _set(draw, made, field, known, MAX_DEPTH)


def _set(draw: Draw, made: Message, field: FieldDescriptor, known: Known, depth: int) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        keys, values = field.message_type.fields
        for _ in range(draw(st.integers(0, MAX_REPEATED))):
            getattr(made, field.name)[_value(draw, keys, known, depth)] = _value(draw, values, known, depth)
    elif field.is_repeated:
        found = [_value(draw, field, known, depth) for _ in range(draw(st.integers(0, MAX_REPEATED)))]
        getattr(made, field.name).extend(found)
    elif field.message_type is not None:
        getattr(made, field.name).CopyFrom(_value(draw, field, known, depth))
    else:
        setattr(made, field.name, _value(draw, field, known, depth))


def _value(draw: Draw, field: FieldDescriptor, known: Known, depth: int) -> Any:
    if field.message_type is not None:
        if not depth:
            return message_factory.GetMessageClass(field.message_type)()
        return _any(draw, field.message_type, known, depth - 1)
    if field.enum_type is not None and draw(st.booleans()):
        return draw(st.sampled_from([value.number for value in field.enum_type.values]))
    if (real := known(field.name)) and draw(st.integers(0, 2)):
        found = real[draw(PLACES) % len(real)]
        return draw(found) if isinstance(found, st.SearchStrategy) else found
    return draw(st.sampled_from(EDGES[field.type]) | ANY[field.type])
