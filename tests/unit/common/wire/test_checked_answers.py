"""The rules for the coordinator's answers: every field has one, and each holds near its limit."""

import hashlib
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from pluralllm.common.errors.tree import AnswerInvalid
from pluralllm.common.weights.chunks import CHUNK_BYTES
from pluralllm.common.wire.checked_answers import (
    FIELDS,
    LAST_S,
    MAX_CERTIFICATES_BYTES,
    MAX_LABEL,
    MAX_TEXT,
    MAX_WAIT_S,
    checked_answer,
    unchecked_fields,
)
from pluralllm.common.words.ids import ClientId
from pluralllm.v1 import enrolment_pb2, federation_pb2, operations_pb2
from pluralllm.v1 import federation_pb2 as pb
from pluralllm.v1 import resources_pb2 as resources

ANN = ClientId("ann")
SHA, OTHER_SHA = "a" * 64, "b" * 64
NOW = Timestamp(seconds=1_790_000_000)
TASK = "runs/first/rounds/2/tasks/train-ann"
SERVICES = (federation_pb2.DESCRIPTOR.services_by_name, enrolment_pb2.DESCRIPTOR.services_by_name)
METHODS = [method for services in SERVICES for service in services.values() for method in service.methods]
OPERATIONS = operations_pb2.DESCRIPTOR.services_by_name["OperationsService"]
METHODS += [OPERATIONS.methods_by_name[name] for name in ("ListAuditEvents", "CreatePageLink")]
EVIL_IDS = ["", "../x", "a/b", ".", "..", "A", "a" * 41, "a\n", "a\x1b[2J", "/etc", "a.b", "-"]
EVIL_DIGESTS = ["", "a" * 63, "a" * 65, "A" * 64, "../" + "a" * 61, "a" * 64 + "\n"]


def task(**fields: Any) -> pb.PollResponse:
    facts: dict[str, Any] = {
        "name": TASK,
        "run": "first",
        "kind": pb.TASK_KIND_TRAIN,
        "round": 2,
        "spec_sha256": SHA,
        "base_version": 1,
        "base_digest": SHA,
        "base_record_sha256": SHA,
        "cohort_size": 5,
        "seed": 2**64 - 1,
    }
    return pb.PollResponse(task=pb.Task(**facts | fields))


def hello(**fields: Any) -> pb.HelloResponse:
    facts: dict[str, Any] = {"protocol": 1, "generation": "0", "server_time": NOW, "limits": pb.Limits()}
    return pb.HelloResponse(**facts | fields)


def manifest(data: bytes = b"w", version: int = 3, **model: Any) -> pb.GetManifestResponse:
    hashes = [hashlib.sha256(data).digest()]
    digest = hashlib.sha256(hashes[0]).hexdigest()
    facts: dict[str, Any] = {
        "name": f"runs/first/models/{version}",
        "version": version,
        "digest": digest,
        "record_sha256": SHA,
        "spec_sha256": SHA,
        "create_time": NOW,
    }
    blob = resources.BlobManifest(digest=digest, size_bytes=len(data), chunk_bytes=CHUNK_BYTES, chunk_sha256=hashes)
    return pb.GetManifestResponse(manifest=blob, model=resources.ModelVersion(**facts | model))


def over(outcome: Any) -> pb.RunOver:
    return pb.RunOver(run="first", outcome=outcome)


def receipt(**fields: Any) -> resources.Receipt:
    facts: dict[str, Any] = {"run": "first", "round": 2, "client": "ann", "update_digest": SHA, "examples": 5}
    return resources.Receipt(**facts | {"create_time": NOW} | fields)


def record(**fields: Any) -> pb.ListVersionRecordsResponse:
    facts: dict[str, Any] = {"version": 3, "round": 3, "digest": SHA, "spec_sha256": SHA, "parent_record_sha256": SHA}
    return pb.ListVersionRecordsResponse(records=[resources.VersionRecord(**facts | fields)])


def joined(**fields: Any) -> enrolment_pb2.JoinResponse:
    facts: dict[str, Any] = {"certificate_chain_pem": b"x", "role": 1, "group": "S. Korea", "group_role": 1}
    return enrolment_pb2.JoinResponse(**facts | fields)


def roster_entry(**fields: Any) -> pb.RosterEntry:
    facts: dict[str, Any] = {"sequence": 4, "name": "ann", "group": "S. Korea", "fingerprint": SHA, "change": 1}
    return pb.RosterEntry(**facts | fields)


REQUESTS: dict[str, Any] = {
    "Hello": pb.HelloRequest(protocol=pb.ProtocolRange(min=1, max=1)),
    "Poll": pb.PollRequest(following=["first"]),
    "GetRunSpec": pb.GetRunSpecRequest(run="first"),
    "GetManifest": pb.GetManifestRequest(run="first", version=3),
    "ListVersionRecords": pb.ListVersionRecordsRequest(run="first", first_version=3, last_version=4),
    "BeginUpdate": pb.BeginUpdateRequest(task=TASK, manifest=resources.BlobManifest(digest=SHA), examples=5),
    "CommitUpdate": pb.CommitUpdateRequest(task=TASK, digest=SHA),
    "GetRoster": pb.GetRosterRequest(after=3),
    "CompareQuestions": pb.CompareQuestionsRequest(run="first", digests=[1, 2, 3]),
    "Join": enrolment_pb2.JoinRequest(name="ann"),
    "GetMembership": enrolment_pb2.GetMembershipRequest(),
    "Renew": enrolment_pb2.RenewRequest(),
}
GOOD: list[tuple[str, Any]] = [
    ("Hello", hello()),
    ("Hello", hello(generation="g" * MAX_LABEL)),
    *(("Hello", hello(release=release)) for release in ("0.1.0", "2.0.0rc1.post1+local", "1" * 60)),
    ("Poll", task()),
    ("Poll", task(traceparent=f"00-{'a' * 32}-{'b' * 16}-01", lease=Duration(seconds=86_400))),
    ("Poll", pb.PollResponse(wait=pb.Wait(after=Duration(seconds=MAX_WAIT_S), reason="x" * MAX_TEXT))),
    ("Poll", pb.PollResponse(run_over=pb.RunOver(run="first", outcome=resources.RUN_OUTCOME_COMPLETED))),
    ("Poll", pb.PollResponse(upgrade=pb.Upgrade(protocol=pb.ProtocolRange(min=2, max=3)))),
    ("Poll", pb.PollResponse(wait=pb.Wait(), audit_head=resources.AuditHead(sequence=9, sha256=SHA, signature=b"s"))),
    ("GetRunSpec", pb.GetRunSpecResponse(spec_json=b"{}", spec_sha256=hashlib.sha256(b"{}").hexdigest())),
    ("GetManifest", manifest()),
    ("ListVersionRecords", record(updates=[resources.RecordedUpdate(client="ann", digest=SHA, examples=7)])),
    ("ListVersionRecords", record(scales=[0.0, 1.0], weights=[0.5], moments=[SHA])),
    ("BeginUpdate", pb.BeginUpdateResponse(missing=[resources.ChunkRange(first=0, last=999_999_999)])),
    ("BeginUpdate", pb.BeginUpdateResponse(receipt=receipt())),
    ("CommitUpdate", pb.CommitUpdateResponse(receipt=receipt())),
    ("GetRoster", pb.GetRosterResponse()),
    ("CompareQuestions", pb.CompareQuestionsResponse()),
    ("CompareQuestions", pb.CompareQuestionsResponse(members=1, shared=3, compared=3)),
    ("CompareQuestions", pb.CompareQuestionsResponse(members=1, shared=0, compared=2)),
    ("GetRoster", pb.GetRosterResponse(entries=[roster_entry(), roster_entry(sequence=5, change=3)], head=b"h" * 32)),
    ("Join", joined()),
    ("Join", joined(role=3, group="", group_role=0, certificate_chain_pem=b"x" * MAX_CERTIFICATES_BYTES)),
    ("GetMembership", enrolment_pb2.GetMembershipResponse(server_time=NOW, protocol=pb.ProtocolRange())),
    ("Renew", enrolment_pb2.RenewResponse(certificate_chain_pem=b"x")),
]
BAD: list[tuple[str, Any, str]] = [
    ("GetRoster", pb.GetRosterResponse(head=b"h" * 31), "head"),
    ("CompareQuestions", pb.CompareQuestionsResponse(members=1, shared=3, compared=2), "shared"),
    ("CompareQuestions", pb.CompareQuestionsResponse(members=1, compared=4), "compared"),
    ("CompareQuestions", pb.CompareQuestionsResponse(members=0, shared=1, compared=3), "shared"),
    ("CompareQuestions", pb.CompareQuestionsResponse(members=-1), "members"),
    ("CompareQuestions", pb.CompareQuestionsResponse(members=1, shared=-1), "shared"),
    ("GetRoster", pb.GetRosterResponse(entries=[roster_entry(sequence=3)]), "entries[0].sequence"),
    ("GetRoster", pb.GetRosterResponse(entries=[roster_entry(), roster_entry()]), "entries[1].sequence"),
    ("GetRoster", pb.GetRosterResponse(entries=[roster_entry(name="../x")]), "entries.name"),
    ("GetRoster", pb.GetRosterResponse(entries=[roster_entry(group="a\x1b[2J")]), "entries.group"),
    ("GetRoster", pb.GetRosterResponse(entries=[roster_entry(fingerprint="x")]), "entries.fingerprint"),
    *(("GetRoster", pb.GetRosterResponse(entries=[roster_entry(change=one)]), "entries.change") for one in (0, 4)),
    ("GetRoster", pb.GetRosterResponse(entries=[roster_entry(sequence=n + 4) for n in range(1001)]), "entries"),
    *[("Poll", task(run=evil), "task.run") for evil in EVIL_IDS],
    *[("Poll", task(name=f"runs/{evil}/rounds/2/tasks/train-ann"), "task.name") for evil in EVIL_IDS],
    *[("Poll", task(base_digest=evil), "task.base_digest") for evil in EVIL_DIGESTS],
    *[("Poll", task(spec_sha256=evil), "task.spec_sha256") for evil in EVIL_DIGESTS],
    *[("Poll", task(base_record_sha256=evil), "task.base_record_sha256") for evil in EVIL_DIGESTS],
    ("Poll", task(name="runs/first/rounds/2/tasks/train-eve"), "task.name"),  # of another client
    ("Poll", task(name="runs/other/rounds/2/tasks/train-ann"), "task.name"),
    ("Poll", task(name="runs/first/rounds/3/tasks/train-ann"), "task.name"),
    ("Poll", task(name="runs/first/rounds/2/tasks/evaluate-ann"), "task.name"),
    ("Poll", task(name=f"{TASK}\n"), "task.name"),
    ("Poll", task(kind=0), "task.kind"),
    ("Poll", task(kind=77), "task.kind"),
    ("Poll", task(round=-1), "task.round"),
    ("Poll", task(base_version=-1), "task.base_version"),
    ("Poll", task(base_version=10**9), "task.base_version"),
    ("Poll", task(cohort_size=-1), "task.cohort_size"),
    ("Poll", task(lease=Duration(seconds=-1)), "task.lease"),
    ("Poll", task(lease=Duration(seconds=86_401)), "task.lease"),
    ("Poll", task(traceparent="00-x\x1b"), "task.traceparent"),
    ("Poll", pb.PollResponse(wait=pb.Wait(after=Duration(seconds=-1))), "wait.after"),
    ("Poll", pb.PollResponse(wait=pb.Wait(after=Duration(nanos=-1))), "wait.after"),
    ("Poll", pb.PollResponse(wait=pb.Wait(after=Duration(seconds=MAX_WAIT_S, nanos=1))), "wait.after"),
    ("Poll", pb.PollResponse(wait=pb.Wait(reason="x" * (MAX_TEXT + 1))), "wait.reason"),
    *[
        (
            "Poll",
            pb.PollResponse(run_over=pb.RunOver(run=evil, outcome=resources.RUN_OUTCOME_COMPLETED)),
            "run_over.run",
        )
        for evil in EVIL_IDS
    ],
    (
        "Poll",
        pb.PollResponse(run_over=pb.RunOver(run="never-joined", outcome=resources.RUN_OUTCOME_COMPLETED)),
        "run_over.run",
    ),
    ("Poll", pb.PollResponse(run_over=pb.RunOver(run="first")), "run_over.outcome"),
    ("Poll", pb.PollResponse(run_over=over(9)), "run_over.outcome"),
    ("Poll", pb.PollResponse(upgrade=pb.Upgrade()), "upgrade.protocol"),
    ("Poll", pb.PollResponse(wait=pb.Wait(), audit_head=resources.AuditHead(sha256="x")), "audit_head.sha256"),
    ("Poll", pb.PollResponse(wait=pb.Wait(), audit_head=resources.AuditHead(sequence=-1)), "audit_head.sequence"),
    ("Hello", hello(protocol=2), "protocol"),
    ("Hello", hello(generation="g" * (MAX_LABEL + 1)), "generation"),
    ("Hello", hello(server_time=Timestamp(seconds=2**40)), "server_time"),
    ("Hello", hello(server_time=Timestamp(seconds=LAST_S, nanos=1)), "server_time"),
    ("Hello", hello(server_time=None), "server_time"),
    *(
        ("Hello", hello(release=release), "release")
        for release in ("1" * 61, "1" * 2**20, "v1", "1.0\n2", "1.0\x1b[2J", "1.0 --index-url x", "1\u202e")
    ),
    ("Hello", hello(limits=None), "limits"),
    ("GetRunSpec", pb.GetRunSpecResponse(spec_json=b"{}", spec_sha256=SHA), "spec_sha256"),
    ("GetManifest", manifest(version=4), "model.name"),
    ("GetManifest", manifest(name="runs/other/models/3"), "model.name"),
    ("GetManifest", manifest(name="runs/../models/3"), "model.name"),
    ("GetManifest", manifest(digest=OTHER_SHA), "model.digest"),
    ("GetManifest", manifest(record_sha256=""), "model.record_sha256"),
    ("GetManifest", pb.GetManifestResponse(), "manifest"),
    ("GetManifest", manifest(b""), "manifest.chunk_sha256"),
    ("ListVersionRecords", record(version=4), "records[0].version"),
    ("ListVersionRecords", record(digest="x"), "records.digest"),
    ("ListVersionRecords", record(scales=[1.0000001]), "records.scales"),
    ("ListVersionRecords", record(scales=[float("nan")]), "records.scales"),
    ("ListVersionRecords", record(weights=[-1.0]), "records.weights"),
    ("ListVersionRecords", record(updates=[resources.RecordedUpdate(client="../x")]), "records.updates.client"),
    ("BeginUpdate", pb.BeginUpdateResponse(missing=[resources.ChunkRange(first=-1)]), "missing.first"),
    ("BeginUpdate", pb.BeginUpdateResponse(receipt=receipt(client="eve")), "receipt.client"),
    ("BeginUpdate", pb.BeginUpdateResponse(receipt=receipt(examples=6)), "receipt.examples"),
    ("BeginUpdate", pb.BeginUpdateResponse(receipt=receipt(update_digest=OTHER_SHA)), "receipt.update_digest"),
    ("CommitUpdate", pb.CommitUpdateResponse(), "receipt"),
    ("CommitUpdate", pb.CommitUpdateResponse(receipt=receipt(round=3)), "receipt.round"),
    ("CommitUpdate", pb.CommitUpdateResponse(receipt=receipt(run="other")), "receipt.run"),
    ("CommitUpdate", pb.CommitUpdateResponse(receipt=receipt(update_digest=OTHER_SHA)), "receipt.update_digest"),
    ("Join", joined(role=0), "role"),
    ("Join", joined(role=4), "role"),
    ("Join", joined(group="a\x1b[2J"), "group"),
    ("Join", joined(group="x" * 201), "group"),
    ("Join", joined(group_role=3), "group_role"),
    ("Join", joined(certificate_chain_pem=b"x" * (MAX_CERTIFICATES_BYTES + 1)), "certificate_chain_pem"),
    ("GetMembership", enrolment_pb2.GetMembershipResponse(server_time=NOW), "protocol"),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_field_of_an_answer_has_a_rule(method: Any) -> None:
    assert list(unchecked_fields(method.output_type)) == []


def test_the_table_names_only_messages_of_answers() -> None:
    reached: set[str] = set()

    def walk(message: Any) -> None:
        if message.name not in reached and message.file.package == "pluralllm.v1":
            reached.add(message.name)
            for field in message.fields:
                if field.message_type is not None and field.name not in FIELDS.get(message.name, {}):
                    walk(field.message_type)

    for method in METHODS:
        walk(method.output_type)
    assert set(FIELDS) == reached


@pytest.mark.parametrize(("call", "answer"), GOOD)
def test_an_answer_that_keeps_the_protocol_is_returned(call: str, answer: Any) -> None:
    assert checked_answer(call, REQUESTS[call], answer, ANN) is answer


@pytest.mark.parametrize(("call", "answer", "field"), BAD)
def test_an_answer_that_breaks_the_protocol_is_refused_with_its_field(call: str, answer: Any, field: str) -> None:
    with pytest.raises(AnswerInvalid) as refused:
        checked_answer(call, REQUESTS[call], answer, ANN)
    assert (refused.value.call, refused.value.field) == (call, field)
    assert str(refused.value).isprintable()


def test_more_items_than_any_model_has_are_refused_before_they_are_read() -> None:
    many = pb.BeginUpdateResponse(missing=[resources.ChunkRange()] * 100_001)
    with pytest.raises(AnswerInvalid, match="100001 items"):
        checked_answer("BeginUpdate", REQUESTS["BeginUpdate"], many, ANN)


def test_more_records_than_asked_for_are_refused() -> None:
    one = record().records[0]
    three = pb.ListVersionRecordsResponse(records=[one, one, one])
    with pytest.raises(AnswerInvalid, match="more than the versions"):
        checked_answer("ListVersionRecords", REQUESTS["ListVersionRecords"], three, ANN)


def test_a_chunk_list_must_have_the_length_that_the_size_asks_for() -> None:
    answer = manifest()
    answer.manifest.chunk_sha256.append(b"x" * 32)
    with pytest.raises(AnswerInvalid, match="2 hashes, must be 1 hashes"):
        checked_answer("GetManifest", REQUESTS["GetManifest"], answer, ANN)
