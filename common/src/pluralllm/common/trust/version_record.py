"""The record of a model version, and its hash: the coordinator keeps the records, and clients recompute their hashes."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber, RunId


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """The record of a model version: the version's digest, its updates, and the hash of the previous version's record."""

    run: RunId
    version: ModelVersion
    round: RoundNumber  # 0 for version 0
    digest: Digest  # of the model's blob
    spec_sha256: Digest
    parent_sha256: str  # record_sha256 of version - 1; "" for version 0
    updates: tuple[tuple[ClientId, Digest, int], ...]  # client, update, examples, sorted by client
    created_s: float
    # Digests of the server optimizer's state; none before the first round, and none for fedavg.
    moments: tuple[Digest, ...] = ()
    weights: tuple[float, ...] = ()  # weights of the updates, if they do not follow from the examples alone
    scales: tuple[float, ...] = ()  # factors, at most 1, of the updates in the average; empty if none was clipped
    transcript: str = ""  # digest of the round's transcript; "" unless the round was private
    # The hash, once it was asked for: every task names it, and it takes a millisecond for a version of a thousand updates.
    _known_sha256: str = field(default="", init=False, repr=False, compare=False)

    @property
    def record_sha256(self) -> str:
        """The hash of this version record. The record of the next version holds the hash as `parent_sha256`."""
        if not self._known_sha256:
            object.__setattr__(self, "_known_sha256", record_sha256(self))
        return self._known_sha256


def record_sha256(record: VersionRecord) -> str:
    """Returns the hash of a version record, as lower-case hex.

    The hash does not cover the time. So two runs with the same run spec and the same updates have the same hashes.
    Moments (the server optimizer's state), weights, scales and the transcript are hashed only if the record has them. So
    records of older releases, which had none of them, keep their hash.
    """
    facts: list[Any] = [
        record.version,
        record.round,
        record.digest,
        record.spec_sha256,
        record.parent_sha256,
        record.updates,
    ]
    optional: tuple[tuple[str, Any], ...] = (
        ("moments", record.moments),
        ("weights", record.weights),
        ("scales", record.scales),
        ("private", record.transcript),
    )
    facts += [[name, values] for name, values in optional if values]
    return hashlib.sha256(json.dumps(facts, separators=(",", ":")).encode()).hexdigest()
