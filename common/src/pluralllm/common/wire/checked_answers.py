"""Checks every field of the coordinator's answers before the client uses the answer.

The table FIELDS has one rule for each field of each answer of FederationService and EnrolmentService, and of the answers to
ListAuditEvents and CreatePageLink; a test compares the table with the protocol. The table AGREEMENTS has the rules that need the
request or the caller: a task must be for this client, and a receipt must be for the update that this client sent. Parts of an
answer become file names, so an answer that breaks a rule is never used. The limits are far above what a coordinator of this
project sends.
"""

import hashlib
import math
import re
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from pluralllm.common.errors.tree import AnswerInvalid, InvalidArgument
from pluralllm.common.text.printable import GROUP_HELP, is_group_name
from pluralllm.common.weights.chunks import CHUNK_BYTES
from pluralllm.common.wire.messages import (
    MAX_MESSAGE_BYTES,
    MAX_ROSTER_ENTRIES,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    ROSTER_CHANGES_BACK,
)
from pluralllm.common.words.addresses import check_address
from pluralllm.common.words.ids import ID, ClientId
from pluralllm.common.words.names import MEMBER_NAME, MODEL_NAME, TASK_NAME, ModelName, TaskKind, TaskName
from pluralllm.v1 import federation_pb2 as pb

Rule = Callable[[Any], str]  # returns what is wrong with a value; "" if nothing is

MAX_NUMBER = 999_999_999  # names hold numbers of at most nine digits
MAX_WAIT_S = 3_600
MAX_LEASE_S = 86_400
MAX_TEXT = 4_096  # characters of a reason
MAX_FACTS = 65_536  # characters of an audit entry's facts
MAX_LABEL = 200  # characters of a version, a capability or a generation
MAX_ITEMS = 100_000  # chunks of a model, or updates of a version
FIRST_S, LAST_S = 946_684_800, 4_102_444_800  # the years 2000 to 2100
MAX_KEY_BYTES, MAX_CERTIFICATES_BYTES = 256, 16_384
TRACEPARENT = "([0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})?"  # W3C Trace Context, section 3.2; may be empty


def text(pattern: str, what: str) -> Rule:
    """Returns the rule that a text matches a pattern. what: the form of the text, for the error."""
    compiled = re.compile(pattern)
    return lambda value: "" if compiled.fullmatch(value) else f"must be {what}"


def number(least: float, most: float) -> Rule:
    """Returns the rule that a number is finite and lies between `least` and `most`, both included."""
    return lambda value: "" if least <= value <= most else f"is {value}, must be {least} to {most}"


def characters(most: int) -> Rule:
    """Returns the rule that a text has at most this many characters."""
    return lambda value: "" if len(value) <= most else f"has {len(value)} characters, must have at most {most}"


def size(most: int) -> Rule:
    """Returns the rule that a field of bytes has at most this many bytes."""
    return lambda value: "" if len(value) <= most else f"has {len(value)} bytes, must have at most {most}"


def seconds_between(least_s: int, most_s: int) -> Rule:
    """Returns the rule that a duration or a moment lies between two numbers of seconds, both included."""

    def check(value: Any) -> str:
        value_ns = value.seconds * 10**9 + value.nanos
        is_within = least_s * 10**9 <= value_ns <= most_s * 10**9
        return "" if is_within else f"is {value_ns / 1e9:g} s, must be {least_s} to {most_s} s"

    return check


def one_of(numbers: Container[int]) -> Rule:
    """Returns the rule that a number is one of the numbers that this release knows."""
    return lambda value: "" if value in numbers else f"is {value}, which this release does not know"


def anything(value: Any) -> str:
    """Accepts each value: another check, which the table names, looks at it."""
    del value
    return ""


def group(value: str) -> str:
    """Checks the name of a group. It is empty for members that are no clients."""
    return "" if not value or is_group_name(value) else f"must be {GROUP_HELP}"


def address(value: str) -> str:
    """Checks an address to connect to."""
    try:
        check_address(value)
    except ValueError as error:
        return str(error)
    return ""


ID_TEXT = text(ID, "an id: 1 to 40 of a-z, 0-9 and '-', the first a letter")
TASK_TEXT = text(TASK_NAME.pattern, "the name of a task")
DIGEST = text("[0-9a-f]{64}", "64 hex digits")
DIGEST_OR_NONE = text("([0-9a-f]{64})?", "64 hex digits, or empty")


def hash_or_none(value: bytes) -> str:
    """Returns what is wrong with a SHA-256 that may be left out."""
    return "" if len(value) in (0, 32) else f"has {len(value)} bytes, must have 32 or none"


COUNT = number(0, MAX_NUMBER)
SIZE = number(0, 2**50)
LONG_COUNT = number(0, 2**62)
PAST_OR_NEAR = seconds_between(FIRST_S, LAST_S)
LABEL, REASON = characters(MAX_LABEL), characters(MAX_TEXT)
KIND_WORDS = {
    pb.TASK_KIND_TRAIN: TaskKind.TRAIN,
    pb.TASK_KIND_EVALUATE: TaskKind.EVALUATE,
    pb.TASK_KIND_REWARD: TaskKind.REWARD,
}

# Message -> field -> rule for the value, or for each value of a repeated field. A field that holds a message of this table has
# no rule of its own.
FIELDS: Mapping[str, Mapping[str, Rule]] = {
    "CompareQuestionsResponse": {"members": COUNT, "shared": COUNT, "compared": COUNT},
    "HelloResponse": {
        "protocol": number(PROTOCOL_MIN, PROTOCOL_MAX),
        "generation": LABEL,
        "server_time": PAST_OR_NEAR,
        "capabilities": LABEL,
        "release": text("([0-9][0-9A-Za-z.+!_-]{0,59})?", "the number of a release, or empty"),
        "roster_head": hash_or_none,
    },
    "GetRosterResponse": {"head": hash_or_none},
    "RosterEntry": {
        "sequence": number(1, MAX_NUMBER),
        "name": ID_TEXT,
        "group": group,
        "fingerprint": DIGEST,
        "change": one_of(ROSTER_CHANGES_BACK),
    },
    "Limits": {
        "max_message_bytes": SIZE,
        "chunk_bytes": number(0, MAX_MESSAGE_BYTES),
        "lease": seconds_between(0, MAX_LEASE_S),
        "poll_hold": seconds_between(0, MAX_WAIT_S),
    },
    "ProtocolRange": {"min": number(0, 10_000), "max": number(0, 10_000)},
    "Task": {
        "name": TASK_TEXT,
        "run": ID_TEXT,
        "kind": one_of(KIND_WORDS),
        "round": COUNT,
        "phase": number(0, 5),
        "spec_sha256": DIGEST,
        "base_version": COUNT,
        "base_digest": DIGEST,
        "base_record_sha256": DIGEST,
        "cohort_size": number(0, 1_000_000),
        "seed": number(0, 2**64 - 1),
        "lease": seconds_between(0, MAX_LEASE_S),
        "traceparent": text(TRACEPARENT, "a traceparent, or empty"),
    },
    "Wait": {"after": seconds_between(0, MAX_WAIT_S), "reason": REASON},
    "RunOver": {
        "run": ID_TEXT,
        "outcome": one_of(range(1, 4)),
        "reason": REASON,
        "version": COUNT,
        "version_digest": DIGEST_OR_NONE,
    },
    "Upgrade": {},
    "PollResponse": {},
    "AuditHead": {"sequence": LONG_COUNT, "sha256": DIGEST_OR_NONE, "signature": size(MAX_KEY_BYTES)},
    "CreatePageLinkResponse": {"address": address, "token": text(r"[A-Za-z0-9_-]{43}", "43 characters of base64url")},
    "ListAuditEventsResponse": {"next_page_token": characters(MAX_LABEL)},
    "AuditEvent": {
        "sequence": LONG_COUNT,
        "time": anything,  # the hash of the entry covers it
        "actor": text(f"({MEMBER_NAME.pattern})?", "the name of a member, or empty"),
        "serial": characters(MAX_LABEL),
        "action": characters(MAX_LABEL),
        "object": REASON,
        "result": characters(MAX_LABEL),
        "facts_json": characters(MAX_FACTS),
        "previous_sha256": DIGEST_OR_NONE,
        "sha256": DIGEST,
        "withheld": anything,
    },
    "GetRunSpecResponse": {"spec_json": size(MAX_MESSAGE_BYTES), "spec_sha256": DIGEST},
    "ListVersionRecordsResponse": {},
    "VersionRecord": {
        "version": COUNT,
        "round": COUNT,
        "digest": DIGEST,
        "spec_sha256": DIGEST,
        "parent_record_sha256": DIGEST_OR_NONE,
        "moments": DIGEST,
        "weights": number(0, 1e18),
        "scales": number(0, 1),
        "transcript": DIGEST_OR_NONE,
        "signature": size(MAX_KEY_BYTES),
    },
    "RecordedUpdate": {"client": ID_TEXT, "digest": DIGEST, "examples": LONG_COUNT},
    "GetManifestResponse": {},
    "BlobManifest": {
        "digest": DIGEST,
        "size_bytes": SIZE,
        "chunk_bytes": number(CHUNK_BYTES, CHUNK_BYTES),
        "chunk_sha256": lambda value: "" if len(value) == 32 else f"has {len(value)} bytes, must have 32",
    },
    "ModelVersion": {
        "name": text(MODEL_NAME.pattern, "the name of a model version"),
        "version": COUNT,
        "round": COUNT,
        "digest": DIGEST,
        "record_sha256": DIGEST,
        "parent_record_sha256": DIGEST_OR_NONE,
        "spec_sha256": DIGEST,
        "create_time": PAST_OR_NEAR,
    },
    "GetChunksResponse": {"index": COUNT, "data": size(CHUNK_BYTES), "more": anything},
    "GetTranscriptResponse": {"index": COUNT, "data": size(CHUNK_BYTES)},
    "GetMaskedChunksResponse": {"index": COUNT, "data": size(CHUNK_BYTES)},
    "GetRolloutsResponse": {"rollouts_json": size(MAX_MESSAGE_BYTES)},
    # view_of in wire/round_steps.py checks each field of these, and makes the dataclasses that the client uses.
    "GetRoundStepResponse": {
        "phase": number(1, 5),
        "terms": anything,
        "members": anything,
        "dealers": anything,
        "boxes": anything,
        "updates": anything,
        "confirmations": anything,
        "complaints": anything,
    },
    "PutRoundStepResponse": {},
    "BeginUpdateResponse": {},
    "PutChunksResponse": {},
    "CommitUpdateResponse": {},
    "ChunkRange": {"first": COUNT, "last": COUNT},
    "Receipt": {
        "run": ID_TEXT,
        "round": COUNT,
        "client": ID_TEXT,
        "update_digest": DIGEST,
        "examples": LONG_COUNT,
        "create_time": PAST_OR_NEAR,
    },
    "ReportEvaluationResponse": {},
    "ReportProgressResponse": {},
    "ReportFailureResponse": {},
    "JoinResponse": {
        "certificate_chain_pem": size(MAX_CERTIFICATES_BYTES),
        "role": number(1, 3),
        "group": group,
        "group_role": number(0, 2),
        "awaiting_approval": anything,
    },
    "GetMembershipResponse": {"server_time": PAST_OR_NEAR},
    "Addresses": {"coordinator": address, "enrolment": address},
    "RenewResponse": {"certificate_chain_pem": size(MAX_CERTIFICATES_BYTES)},
}
REQUIRED = {  # messages inside an answer that must be there
    "HelloResponse": ("server_time", "limits"),
    "GetManifestResponse": ("manifest", "model"),
    "CommitUpdateResponse": ("receipt",),
    "Upgrade": ("protocol",),
    "GetMembershipResponse": ("server_time", "protocol"),
}


def checked_answer(call: str, request: Any, answer: Any, client: ClientId | None) -> Any:
    """Returns the coordinator's answer to a call of this client. Raises AnswerInvalid for the first field that breaks a rule.

    call: name of the method. client: name of this client; None for a caller that is no client.
    """
    for field, problem in _problems(answer, ""):
        raise AnswerInvalid(call=call, field=field, problem=problem)
    for field, problem in AGREEMENTS.get(call, _no_agreement)(request, answer, client):
        raise AnswerInvalid(call=call, field=field, problem=problem)
    return answer


Problem = tuple[str, str]  # path of the field, what is wrong


def _problems(message: Message, path: str) -> Iterator[Problem]:
    """Yields each field of a message that breaks a rule. path: the path of the message in the answer, with a dot at its end."""
    kind = message.DESCRIPTOR.name
    rules = FIELDS[kind]
    for name in REQUIRED.get(kind, ()):
        if not message.HasField(name):
            yield f"{path}{name}", "is missing"
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None and not field.is_repeated and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if field.is_repeated and len(value) > MAX_ITEMS:
            yield f"{path}{field.name}", f"has {len(value)} items, must have at most {MAX_ITEMS}"
            continue
        for one in value if field.is_repeated else (value,):
            if rule := rules.get(field.name):
                if problem := rule(one):
                    yield f"{path}{field.name}", problem
            else:
                yield from _problems(one, f"{path}{field.name}.")


def unchecked_fields(message: Any) -> Iterator[str]:
    """Yields the fields of a message type, and of the messages inside, for which FIELDS has no rule. message: its descriptor."""
    rules = FIELDS.get(message.name)
    if rules is None:
        yield message.name
        return
    fields: dict[str, FieldDescriptor] = message.fields_by_name
    yield from (f"{message.name}.{name} does not exist" for name in rules if name not in fields)
    for name, field in fields.items():
        if name in rules:
            continue
        if field.message_type is None:
            yield f"{message.name}.{name}"
        else:
            yield from unchecked_fields(field.message_type)


# Agreements of an answer with its request

Agreement = Callable[[Any, Any, ClientId | None], Iterator[Problem]]


def _no_agreement(request: Any, answer: Any, client: ClientId | None) -> Iterator[Problem]:
    del request, answer, client
    return iter(())


def _differ(path: str, pairs: Mapping[str, tuple[object, object]]) -> Iterator[Problem]:
    """Yields a problem for each field that does not have the only value that it may have. pairs: field -> (value, only value)."""
    for field, (value, expected) in pairs.items():
        if value != expected:
            yield f"{path}{field}", f"is {value}, must be {expected}"


def _hello(request: Any, answer: Any, client: ClientId | None) -> Iterator[Problem]:
    del client
    if not request.protocol.min <= answer.protocol <= request.protocol.max:
        yield "protocol", f"is {answer.protocol}, must be {request.protocol.min} to {request.protocol.max}"


def _poll(request: Any, answer: Any, client: ClientId | None) -> Iterator[Problem]:
    if answer.HasField("task"):
        task = answer.task
        name = TaskName.parse(task.name)
        kind = KIND_WORDS[task.kind]
        named = {"run": (name.run, task.run), "round": (name.round, task.round), "kind": (name.kind, kind)}
        if client is not None:
            named["client"] = (name.client, client)
        for word, (in_name, in_field) in named.items():
            if in_name != in_field:
                yield "task.name", f"is {task.name}, but the {word} is {in_field}"
    if answer.HasField("run_over") and answer.run_over.run not in request.following:
        yield "run_over.run", f"is {answer.run_over.run}, a run that this client does not take part in"


def _run_spec(request: Any, answer: Any, client: ClientId | None) -> Iterator[Problem]:
    del request, client
    yield from _differ("", {"spec_sha256": (answer.spec_sha256, hashlib.sha256(answer.spec_json).hexdigest())})


def _records(request: Any, answer: Any, client: ClientId | None) -> Iterator[Problem]:
    del client
    if len(answer.records) > request.last_version - request.first_version + 1:
        yield "records", f"has {len(answer.records)} items, more than the versions that were asked for"
    for at, record in enumerate(answer.records):
        yield from _differ(f"records[{at}].", {"version": (record.version, request.first_version + at)})


def _manifest(request: Any, answer: Any, client: ClientId | None) -> Iterator[Problem]:
    del client
    model, manifest = answer.model, answer.manifest
    try:
        name = ModelName.parse(model.name)
    except InvalidArgument as error:
        yield "model.name", str(error)
        return
    chunks = math.ceil(manifest.size_bytes / CHUNK_BYTES)
    yield from _differ(
        "",
        {
            "model.name": (name, ModelName(request.run, request.version)),
            "model.version": (model.version, request.version),
            "model.digest": (model.digest, manifest.digest),
            "manifest.chunk_sha256": (f"{len(manifest.chunk_sha256)} hashes", f"{chunks} hashes"),
        },
    )


def _receipt(receipt: Any, task: str, digest: str, client: ClientId | None) -> Iterator[Problem]:
    name = TaskName.parse(task)
    facts = {"run": (receipt.run, name.run), "round": (receipt.round, name.round)}
    facts["client"] = (receipt.client, name.client if client is None else client)
    facts["update_digest"] = (receipt.update_digest, digest)
    yield from _differ("receipt.", facts)


def _begun(request: Any, answer: Any, client: ClientId | None) -> Iterator[Problem]:
    if answer.HasField("receipt"):
        yield from _receipt(answer.receipt, request.task, request.manifest.digest, client)
        yield from _differ("receipt.", {"examples": (answer.receipt.examples, request.examples)})


def _committed(request: Any, answer: Any, client: ClientId | None) -> Iterator[Problem]:
    yield from _receipt(answer.receipt, request.task, request.digest, client)


def _roster(request: Any, answer: Any, client: ClientId | None) -> Iterator[Problem]:
    del client
    if len(answer.entries) > MAX_ROSTER_ENTRIES:
        yield "entries", f"has {len(answer.entries)} items, must have at most {MAX_ROSTER_ENTRIES}"
    for at, entry in enumerate(answer.entries):
        yield from _differ(f"entries[{at}].", {"sequence": (entry.sequence, request.after + 1 + at)})


def _compared(request: Any, answer: Any, client: ClientId | None) -> Iterator[Problem]:
    del client
    most = answer.compared if answer.members else 0
    if answer.shared > most:
        yield "shared", f"is {answer.shared}, must be at most {most}"
    if answer.compared > len(request.digests):
        yield "compared", f"is {answer.compared}, must be at most {len(request.digests)}"


AGREEMENTS: Mapping[str, Agreement] = {
    "Hello": _hello,
    "Poll": _poll,
    "GetRunSpec": _run_spec,
    "ListVersionRecords": _records,
    "GetManifest": _manifest,
    "BeginUpdate": _begun,
    "CommitUpdate": _committed,
    "GetRoster": _roster,
    "CompareQuestions": _compared,
}
