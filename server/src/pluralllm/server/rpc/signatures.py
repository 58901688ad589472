"""Version records and the audit log's head as signed messages. Without certificates, the signatures are empty."""

from collections.abc import Callable

from pluralllm.common.trust.record_signatures import RecordSigner
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.words.ids import RunId
from pluralllm.server.rpc.messages import version_record_message
from pluralllm.v1 import resources_pb2 as pb

RECORDS_KEPT = 8  # messages of version records; each has a line for every update of its version


class Signatures:
    """Makes the signed messages of one coordinator, and keeps those that all clients get.

    Every poll carries the audit log's head. Every client of a round reads the record of the newest version: without the cache,
    a round of n clients would make n messages of n updates each.
    """

    def __init__(self, audit_head: Callable[[], tuple[int, str]], signer: RecordSigner | None) -> None:
        """Stores the arguments. audit_head: returns sequence number and hash of the newest audit entry.

        signer: the federation's record key; None if the coordinator uses no certificates.
        """
        self._audit_head, self._signer = audit_head, signer
        self._cached_head = pb.AuditHead()
        self._records: dict[tuple[RunId, str], pb.VersionRecord] = {}  # oldest first

    @property
    def record_key_der(self) -> bytes:
        """The public half of the record key (SubjectPublicKeyInfo, DER); empty if the coordinator uses no certificates."""
        return b"" if self._signer is None else self._signer.public_der

    def audit_head(self) -> pb.AuditHead:
        """Returns number and hash of the newest audit entry, with their signature. Callers must not change the message."""
        sequence, sha256 = self._audit_head()
        if (sequence, sha256) != (self._cached_head.sequence, self._cached_head.sha256):
            signature = b"" if self._signer is None else self._signer.of_audit_head(sequence, sha256)
            self._cached_head = pb.AuditHead(sequence=sequence, sha256=sha256, signature=signature)
        return self._cached_head

    def version_record(self, record: VersionRecord) -> pb.VersionRecord:
        """Returns a version record with its signature, in the form in which clients get it. Callers must not change it."""
        key = (record.run, record.record_sha256)
        if (message := self._records.get(key)) is None:
            message = version_record_message(record)
            if self._signer is not None:
                message.signature = self._signer.of_version(*key)
            self._records[key] = message
            if len(self._records) > RECORDS_KEPT:
                del self._records[next(iter(self._records))]
        return message
