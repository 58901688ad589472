"""The coordinator's records, and the contract of the store that keeps them. The SQL is in sql_store.py."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from pluralllm.common.words.ids import ClientId, Digest, GroupName, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.rounds.events import Event, Receipt, Score


class RoundOutcome(StrEnum):
    OPEN = "open"
    CLOSED = "closed"
    ABANDONED = "abandoned"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as it was created. All that happened to it later is in its events."""

    id: RunId
    spec_json: bytes  # canonical JSON; sha256(spec_json) == spec_sha256
    spec_sha256: Digest
    created_s: float


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """A model version in the hash chain."""

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
    weights: tuple[float, ...] = ()  # weights of the updates, if fairness-aware; else they follow from the examples

    @property
    def record_sha256(self) -> str:
        """The hash that links the chain. It leaves the time out: two runs of one spec with the same updates have one history.

        Moments and weights are hashed only if there are any, so that other records have the same hash as in older releases,
        which had neither.
        """
        facts: list[Any] = [
            self.version,
            self.round,
            self.digest,
            self.spec_sha256,
            self.parent_sha256,
            self.updates,
        ]
        facts += [[name, values] for name, values in (("moments", self.moments), ("weights", self.weights)) if values]
        return hashlib.sha256(json.dumps(facts, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class RoundRecord:
    run: RunId
    round: RoundNumber
    outcome: RoundOutcome
    reason: str  # why the round was abandoned; "" for the others
    base_version: ModelVersion
    version: ModelVersion | None  # the version that this round made
    cohort: tuple[ClientId, ...]
    created_s: float
    updated_s: float
    rollouts: str = ""  # digest of the batch that was scored; "" for a training round


@dataclass(frozen=True, slots=True)
class ReceiptRecord:
    run: RunId
    round: RoundNumber
    receipt: Receipt
    created_s: float


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    run: RunId
    score: Score
    created_s: float


@dataclass(frozen=True, slots=True)
class EventRecord:
    sequence: int  # 1, 2, 3 ... within a run, without gaps
    at_s: float
    kind: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ClientRecord:
    """A client that has called Hello. The record is kept for ever, and each Hello updates it."""

    client: ClientId
    group: GroupName
    role: GroupRole
    training_questions: int
    software_version: str
    created_s: float
    last_seen_s: float


@dataclass(frozen=True, slots=True)
class Change:
    """An event and all rows that are written with it, in one transaction."""

    run: RunId
    sequence: int  # the event's number in its run; a second writer with the same number fails
    event: Event
    rounds: tuple[RoundRecord, ...] = ()  # inserted or replaced
    receipts: tuple[ReceiptRecord, ...] = ()  # inserted
    withdrawn: tuple[tuple[RoundNumber, ClientId], ...] = ()  # receipts deleted: their members were revoked
    evaluations: tuple[EvaluationRecord, ...] = ()  # inserted or replaced
    versions: tuple[VersionRecord, ...] = ()  # inserted


class Store(Protocol):
    """A store of the coordinator's records. A change is durable when its method returns.

    Every method raises StoreFailed or StorageFull when the database fails.
    """

    async def create_run(self, run: RunRecord, first_version: VersionRecord) -> None:
        """Inserts a run and its first version in one transaction. Raises StoreFailed if the id exists; callers check before."""
        ...

    async def runs(self) -> Sequence[RunRecord]:
        """All runs, oldest first."""
        ...

    async def apply(self, change: Change) -> None:
        """Writes one event and the rows that follow from it. If the sequence is taken, raises StoreFailed, writes nothing."""
        ...

    async def events(self, run: RunId, after: int, limit: int) -> Sequence[EventRecord]:
        """Events with sequence > after, in order; at most `limit`."""
        ...

    async def round(self, run: RunId, number: RoundNumber) -> RoundRecord | None: ...

    async def rounds(self, run: RunId, before: int | None, limit: int) -> Sequence[RoundRecord]:
        """Rounds with number < before (None: all), newest first; at most `limit`."""
        ...

    async def receipts(self, run: RunId, number: RoundNumber) -> Sequence[ReceiptRecord]:
        """Receipts of one round, sorted by client."""
        ...

    async def receipt(self, run: RunId, number: RoundNumber, client: ClientId) -> ReceiptRecord | None: ...

    async def version(self, run: RunId, number: ModelVersion) -> VersionRecord | None: ...

    async def versions(self, run: RunId) -> Sequence[VersionRecord]:
        """All versions of a run, oldest first."""
        ...

    async def model_digests(self, run: RunId) -> Sequence[Digest]:
        """Model digests of all versions, oldest first. Version numbers have no gaps: a version's number is its index here."""
        ...

    async def evaluations(self, run: RunId, after: int, limit: int) -> Sequence[tuple[int, EvaluationRecord]]:
        """Evaluations with a cursor > after, oldest first, each with its cursor; at most `limit`.

        Each (version, client) has one: a newer evaluation replaces the older one.
        """
        ...

    async def latest_evaluations(self, run: RunId, versions: int) -> Sequence[EvaluationRecord]:
        """Evaluations of the newest `versions` evaluated versions, sorted by version, then group."""
        ...

    async def save_client(self, client: ClientRecord) -> None:
        """Inserts a client, or updates all its fields except created_s."""
        ...

    async def clients(self) -> Sequence[ClientRecord]:
        """All clients, sorted by name."""
        ...

    async def close(self) -> None: ...
