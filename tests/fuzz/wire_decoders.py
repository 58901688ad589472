"""The decoders that make domain objects from bytes of the wire, each as a function of bytes, and a good input for each.

The first byte of an input chooses the decoder that gets the rest. A decoder that raises anything but a refusal has a bug. This
module does not need atheris.
"""

import base64
import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import grpc
from fuzz.good_requests import GOOD, Situation
from google.protobuf import message_factory
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2

from pluralllm.common.errors.grpc_status import from_rpc_error, to_status
from pluralllm.common.errors.tree import AnswerInvalid, InvalidArgument, NormTooLarge, Refused
from pluralllm.common.trust.certificates import make_request, new_key, public_key_of, read_certificate
from pluralllm.common.trust.invite import LINE_PREFIX, parse_invite
from pluralllm.common.weights.chunks import CHUNK_BYTES, Manifest, digest_of
from pluralllm.common.weights.layout import check_header, layout_of, read_layout
from pluralllm.common.weights.update_format import update_format
from pluralllm.common.wire.checked_answers import checked_answer
from pluralllm.common.wire.chunk_messages import chunk_reader, write_chunk
from pluralllm.common.wire.messages import chunks_in, manifest_from, seconds
from pluralllm.common.words.ids import ClientId, Digest
from pluralllm.common.words.names import MemberName, ModelName, RoundName, RunName
from pluralllm.common.words.spec import RunSpec, parse_spec
from pluralllm.server.rpc.incoming import check_request, forgiving
from pluralllm.server.rpc.operations import cursor, page_size
from pluralllm.server.runs.intake import parse_task
from pluralllm.v1 import enrolment_pb2, federation_pb2, operations_pb2, resources_pb2

MAX_UPDATE_BYTES = 2**30
CHUNKS = 1000  # the chunks of an update that is requested in ranges
INVITE = LINE_PREFIX + base64.urlsafe_b64encode(b'{"name":"ann","token":"x"}').decode().rstrip("=") + ".AAAA"
LAYOUT = layout_of([("a", (3,)), ("b", (2, 2))])
SPEC = RunSpec.model_validate({"embedding": {"model": "tiny", "dimension": 8}})
METHODS = {
    method.name: method
    for file in (federation_pb2, operations_pb2, enrolment_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
Part = Callable[[Any], object]


def read_name(text: str) -> None:
    """Checks that a name that is read is written back unchanged."""
    for kind in (MemberName, RunName, RoundName, ModelName):
        try:
            name = kind.parse(text)
        except InvalidArgument:
            continue
        assert str(name) == text


EITHER: Mapping[str, Part] = {  # the decoder for a field of this name
    "manifest": lambda message: manifest_from(message, MAX_UPDATE_BYTES),
    "spec_json": lambda text: parse_spec(text, "here"),
    "certificate_chain_pem": read_certificate,
}
OF_REQUESTS: Mapping[str, Part] = {
    **EITHER,
    "task": lambda text: parse_task(text, ClientId("ann")),
    "page_token": cursor,
    "page_size": page_size,
    "certificate_request_der": public_key_of,
    "name": read_name,
}
OF_ANSWERS: Mapping[str, Part] = {
    **EITHER,
    "missing": lambda ranges: chunks_in(ranges, CHUNKS),
    "server_time": seconds,
    "expire_time": seconds,
}


def message(name: str, *, of_answer: bool) -> Callable[[bytes], None]:
    """Returns a decoder that reads a request as the coordinator does, or an answer as a client does, and then each part."""
    method = METHODS[name]
    kind = message_factory.GetMessageClass(method.output_type if of_answer else method.input_type)
    read, parts = forgiving(name, kind.FromString), OF_ANSWERS if of_answer else OF_REQUESTS
    is_checked = of_answer and method.containing_service.name in {"FederationService", "EnrolmentService"}

    def decode(raw: bytes) -> None:
        decoded = read(raw)
        check_request(decoded)
        if is_checked:
            refusing(partial(checked_answer, name, GOOD[name](situation()), decoded, ClientId("ann")))
        for field, value in decoded.ListFields():
            if field.name in parts:
                refusing(partial(parts[field.name], value))

    return decode


def refusing(work: Callable[[], object]) -> None:
    """Runs the work and ignores a refusal, so that the next part is read, too."""
    with contextlib.suppress(Refused, AnswerInvalid):
        work()


def chunk(raw: bytes) -> None:
    """Checks that the reader without protobuf reads a message with a whole chunk as protobuf reads it."""
    whole = raw + REST
    assert chunk_facts(chunk_reader(federation_pb2.PutChunksRequest), whole) == chunk_facts(
        federation_pb2.PutChunksRequest.FromString, whole
    )


def chunk_facts(read: Callable[[bytes], Any], raw: bytes) -> tuple[Any, ...] | None:
    try:
        message = read(raw)
    except DecodeError:
        return None
    facts = getattr(message, "facts", message)
    return facts.task, facts.digest, facts.index, hashlib.sha256(message.data).digest()


def status(raw: bytes) -> None:
    """Reads a refusal as a client does. Its code is right, so that the rest of the message is read."""
    try:
        grpc_status = status_pb2.Status.FromString(raw)
    except DecodeError:
        grpc_status = status_pb2.Status()
    codes = {code.value[0]: code for code in grpc.StatusCode}
    call: Any = grpc.RpcError()
    call.code = lambda: codes.get(grpc_status.code, grpc.StatusCode.UNKNOWN)
    call.details = lambda: grpc_status.message
    call.trailing_metadata = lambda: (("grpc-status-details-bin", raw),)
    assert str(from_rpc_error(call, "here"))


def model_file(raw: bytes) -> None:
    FILE.write_bytes(raw)
    layout = read_layout(FILE)
    assert layout.header == raw[: len(layout.header)]
    assert layout.size_bytes == len(raw)


def update_file(raw: bytes) -> None:
    FILE.write_bytes(raw)
    for encoding in ("fp32", "bf16", "int8"):
        form = update_format(LAYOUT, encoding)
        refusing(partial(check_header, FILE, form.header, form.size_bytes))


REST = federation_pb2.PutChunksRequest(data=b"w" * CHUNK_BYTES).SerializeToString()
FOLDER = tempfile.TemporaryDirectory(prefix="pluralllm-wire-")
FILE = Path(FOLDER.name) / "file"
DECODERS: Mapping[str, Callable[[bytes], None]] = {
    **{f"request {name}": message(name, of_answer=False) for name in METHODS},
    **{f"answer {name}": message(name, of_answer=True) for name in METHODS},
    "chunk": chunk,
    "status": status,
    "model file": model_file,
    "update file": update_file,
    "run spec": lambda raw: refusing(lambda: parse_spec(raw, "here")),
    "certificate request": lambda raw: refusing(lambda: public_key_of(raw)),
    "certificate": lambda raw: refusing(lambda: read_certificate(raw)),
    "invite": lambda raw: refusing(lambda: parse_invite(raw.decode("utf-8", "replace"))),
}
NAMES = tuple(DECODERS)


def decode(fuzzed_bytes: bytes) -> None:
    """Decodes one input. Raises the exceptions that are bugs."""
    if fuzzed_bytes:
        refusing(lambda: DECODERS[NAMES[fuzzed_bytes[0] % len(NAMES)]](fuzzed_bytes[1:]))


@cache
def situation() -> Situation:
    """Returns what the good requests are about."""
    update = LAYOUT.header + bytes(LAYOUT.size_bytes - len(LAYOUT.header))
    hashes = (hashlib.sha256(update).digest(),)
    request = make_request(new_key(), "guest")
    digest = Digest("0" * 64)
    return Situation(
        run="first",
        scored_run="second",
        scored_task="runs/second/rounds/0/tasks/evaluate-eve",
        rated_run="fourth",
        rated_task="runs/fourth/rounds/1/tasks/reward-rae",
        rollouts_json=b'[["Which?",["this","that"],[3,1]]]',
        next_run="third",
        ended_run="zeroth",
        task=federation_pb2.Task(name="runs/first/rounds/1/tasks/train-ann", spec_sha256=digest, base_digest=digest),
        manifest=Manifest(digest_of(hashes), len(update), hashes),
        update=update,
        spec_json=SPEC.canonical_json(),
        generation="0" * 16,
        token="token",
        requests_der=(request, request),
        chain_pem=b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    )


def seeds() -> dict[str, bytes]:
    """Returns a good input for each decoder that has one."""
    now = situation()
    moment = Timestamp(seconds=1_790_000_000)
    task = now.task
    receipt = resources_pb2.Receipt(
        run="first", round=1, client="ann", update_digest=now.manifest.digest, create_time=moment
    )
    good: dict[str, Message] = {f"request {name}": made(now) for name, made in GOOD.items()}
    good["answer BeginUpdate"] = federation_pb2.BeginUpdateResponse(
        missing=[resources_pb2.ChunkRange(first=0, last=5), resources_pb2.ChunkRange(first=3, last=2**31 - 1)]
    )
    answered = federation_pb2.Task(kind=federation_pb2.TASK_KIND_TRAIN, run="first", round=1)
    answered.MergeFrom(task)
    answered.base_record_sha256 = answered.base_digest
    good["answer Poll"] = federation_pb2.PollResponse(task=answered)
    good["answer CommitUpdate"] = federation_pb2.CommitUpdateResponse(receipt=receipt)
    good["answer Hello"] = federation_pb2.HelloResponse(
        protocol=1, generation="0", server_time=moment, limits=federation_pb2.Limits()
    )
    good["answer Join"] = enrolment_pb2.JoinResponse(
        role=resources_pb2.MEMBER_ROLE_CLIENT, group="S. Korea", group_role=resources_pb2.GROUP_ROLE_TRAIN
    )
    inputs = {name: made.SerializeToString() for name, made in good.items()} | {
        "chunk": write_chunk(federation_pb2.PutChunksRequest(task="t", index=1), b""),
        "status": to_status(NormTooLarge(norm=2.0, limit=1.0)).trailing_metadata[0][1],
        "model file": now.update,
        "update file": update_format(LAYOUT, "int8").header + bytes(20),
        "run spec": now.spec_json,
        "invite": INVITE.encode(),
        "certificate request": now.requests_der[0],
    }
    return {name: bytes([NAMES.index(name)]) + raw for name, raw in inputs.items()}
