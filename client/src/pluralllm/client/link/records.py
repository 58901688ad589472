"""Version records as the coordinator sends them, converted to the form whose hash the client computes."""

from pluralllm.client.link.tasks import SignedRecord
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber, RunId
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
    )
    return SignedRecord(record, message.signature)
