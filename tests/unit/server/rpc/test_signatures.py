"""Messages that all clients get are made and signed once."""

from dataclasses import replace

from pluralllm.common.trust.certificates import new_key
from pluralllm.common.trust.record_signatures import RecordSigner, RecordVerifier
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.words.ids import Digest, ModelVersion, RoundNumber, RunId
from pluralllm.server.rpc.messages import version_record_message
from pluralllm.server.rpc.signatures import RECORDS_KEPT, Signatures

RECORD = VersionRecord(RunId("r"), ModelVersion(1), RoundNumber(1), Digest("d"), Digest("s"), "p", (), 1.0)


def test_a_version_record_is_made_once_and_each_has_its_own_message_and_signature() -> None:
    signer = RecordSigner("fed", new_key())
    signatures, verifier = Signatures(lambda: (0, ""), signer), RecordVerifier("fed", signer.public_der)
    records = [replace(RECORD, version=ModelVersion(number)) for number in range(1, 4)]
    records.append(replace(RECORD, run=RunId("s")))
    for record in (*records, *records):
        message = signatures.version_record(record)
        assert message is signatures.version_record(replace(record))
        assert verifier.has_signed_version(record.run, record.record_sha256, message.signature)
        unsigned = version_record_message(record)
        unsigned.signature = message.signature
        assert message == unsigned


def test_only_the_newest_messages_are_kept() -> None:
    signatures = Signatures(lambda: (0, ""), None)
    first = signatures.version_record(RECORD)
    for number in range(2, RECORDS_KEPT + 1):
        signatures.version_record(replace(RECORD, version=ModelVersion(number)))
    assert signatures.version_record(RECORD) is first
    signatures.version_record(replace(RECORD, version=ModelVersion(RECORDS_KEPT + 1)))
    assert signatures.version_record(RECORD) is not first
