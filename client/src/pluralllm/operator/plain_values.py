"""Plain Python values of the coordinator's answers, for screens, JSON and programs."""

from typing import Any

from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from pluralllm.common.text.printable import printable, printable_values
from pluralllm.v1.resources_pb2 import NOT_REPORTED_UNSPECIFIED, AuditEvent, GroupEvaluation

Values = dict[str, Any]


def plain(message: Message) -> Values:
    """Converts a protobuf message to plain values. An optional field that is not set becomes None.

    The scores of an evaluation that the client does not report become None, too, because 0 would look like a score. Texts are
    made printable, because members and the coordinator choose them. The texts of an audit entry stay as they are, because their
    hash is computed again; the functions that show an entry make them printable.
    """
    values: Values = {}
    keeps_texts = isinstance(message, AuditEvent)
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            values[field.name] = [_plain(field, item, keeps_texts=keeps_texts) for item in value]
        elif field.has_presence and not message.HasField(field.name):
            values[field.name] = None
        else:
            values[field.name] = _plain(field, value, keeps_texts=keeps_texts)
    if isinstance(message, GroupEvaluation) and message.not_reported != NOT_REPORTED_UNSPECIFIED:
        values |= {"alignment_score": None, "alignment_score_base2": None}
    return values


def _plain(field: Any, value: Any, *, keeps_texts: bool) -> Any:
    if field.enum_type is not None:
        prefix = field.enum_type.values[0].name.removesuffix("UNSPECIFIED")
        known = field.enum_type.values_by_number.get(value)  # a later release may have more values
        return f"unknown_{value}" if known is None else known.name.removeprefix(prefix).lower()
    if isinstance(value, Timestamp):
        return value.ToJsonString()
    if isinstance(value, Struct):
        from google.protobuf import json_format  # noqa: PLC0415 - few answers have a struct

        return printable_values(json_format.MessageToDict(value))
    if isinstance(value, str) and not keeps_texts:
        return printable(value, lines=True)
    return plain(value) if isinstance(value, Message) else value
