"""Version records and audit entries as the coordinator sends them, converted to the forms whose hashes the client computes."""

from pluralllm.client.link.tasks import ShownEntry, SignedRecord
from pluralllm.common.trust.audit_chain import AuditEntry, WithheldEntry
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.names import MemberName
from pluralllm.v1 import resources_pb2 as pb


def signed_record(run: RunId, message: pb.VersionRecord) -> SignedRecord:
    """Converts a message to a version record of a run. The record's time stays unknown; the hash does not cover it."""
    record = VersionRecord(
        run=run,
        version=ModelVersion(message.version),
        round=RoundNumber(message.round),
        digest=Digest(message.digest),
        spec_sha256=Digest(message.spec_sha256),
        parent_sha256=message.parent_record_sha256,
        updates=tuple((ClientId(one.client), Digest(one.digest), one.examples) for one in message.updates),
        created_s=0.0,
        moments=tuple(map(Digest, message.moments)),
        weights=tuple(message.weights),
        scales=tuple(message.scales),
        transcript=message.transcript,
    )
    return SignedRecord(record, message.signature)


def shown_entry(message: pb.AuditEvent) -> ShownEntry:
    """Converts a message to an audit entry, or to a withheld entry."""
    if message.withheld:
        return ShownEntry(WithheldEntry(message.sequence, message.previous_sha256), message.sha256)
    entry = AuditEntry(
        sequence=message.sequence,
        at_us=message.time.seconds * 10**6 + message.time.nanos // 1000,
        actor=MemberName.parse(message.actor).member if message.actor else "",
        serial=message.serial,
        action=message.action,
        object=message.object,
        result=message.result,
        facts_json=message.facts_json,
        previous_sha256=message.previous_sha256,
    )
    return ShownEntry(entry, message.sha256)
