"""What the coordinator remembers: the Store contract and its records. SQL is in sql_store.py."""

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
    """A run as created; what became of it is in its events."""

    id: RunId
    spec_json: bytes  # canonical; sha256(spec_json) == spec_sha256
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
    moments: tuple[
        Digest, ...
    ] = ()  # of the server optimizer's state; none before the first round, and none for fedavg
    weights: tuple[float, ...] = ()  # of the updates, if fairness-aware; else they follow from the examples

    @property
    def record_sha256(self) -> str:
        """The chain's link: over all but the time, so that two runs of one spec with the same updates have one history.

        Moments and weights are in it where there are any: a run without them has the links of releases that knew none.
        """
        facts: list[Any] = [
            self.version,
            self.round,
            self.digest,
            self.spec_sha256,
            self.parent_sha256,
            self.updates,
        ]
        facts += [[name, found] for name, found in (("moments", self.moments), ("weights", self.weights)) if found]
        return hashlib.sha256(json.dumps(facts, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class RoundRecord:
    run: RunId
    round: RoundNumber
    outcome: RoundOutcome
    reason: str  # of an abandoned round
    base_version: ModelVersion
    version: ModelVersion | None  # made by this round
    cohort: tuple[ClientId, ...]
    created_s: float
    updated_s: float
    rollouts: str = ""  # digest of the batch that was scored; "" of a round that trains


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
    """A client that has said Hello; kept for ever, updated by each Hello."""

    client: ClientId
    group: GroupName
    role: GroupRole
    training_questions: int
    software_version: str
    created_s: float
    last_seen_s: float


@dataclass(frozen=True, slots=True)
class Change:
    """What one event writes, in one transaction: all of it or nothing."""

    run: RunId
    sequence: int  # the event's; a second writer with the same one fails
    event: Event
    rounds: tuple[RoundRecord, ...] = ()  # inserted or replaced
    receipts: tuple[ReceiptRecord, ...] = ()  # inserted
    withdrawn: tuple[tuple[RoundNumber, ClientId], ...] = ()  # receipts deleted: their members were revoked
    evaluations: tuple[EvaluationRecord, ...] = ()  # inserted or replaced
    versions: tuple[VersionRecord, ...] = ()  # inserted


class Store(Protocol):
    """Durable when a method returns. Raises StoreFailed or StorageFull when the database cannot."""

    async def create_run(self, run: RunRecord, first_version: VersionRecord) -> None:
        """Inserts both in one transaction. Raises StoreFailed if the id exists (callers look first)."""
        ...

    async def runs(self) -> Sequence[RunRecord]:
        """All runs, oldest first."""
        ...

    async def apply(self, change: Change) -> None:
        """Writes one event and what follows from it. Raises StoreFailed if the sequence is taken; nothing is written then."""
        ...

    async def events(self, run: RunId, after: int, limit: int) -> Sequence[EventRecord]:
        """Events with sequence > after, in order."""
        ...

    async def round(self, run: RunId, number: RoundNumber) -> RoundRecord | None: ...

    async def rounds(self, run: RunId, before: int | None, limit: int) -> Sequence[RoundRecord]:
        """Rounds with number < before, newest first."""
        ...

    async def receipts(self, run: RunId, number: RoundNumber) -> Sequence[ReceiptRecord]:
        """Of one round, sorted by client."""
        ...

    async def receipt(self, run: RunId, number: RoundNumber, client: ClientId) -> ReceiptRecord | None: ...

    async def version(self, run: RunId, number: ModelVersion) -> VersionRecord | None: ...

    async def versions(self, run: RunId) -> Sequence[VersionRecord]:
        """All, oldest first."""
        ...

    async def model_digests(self, run: RunId) -> Sequence[Digest]:
        """Of all versions, oldest first: version numbers have no gaps, so the last one's is their number less one."""
        ...

    async def evaluations(self, run: RunId, after: int, limit: int) -> Sequence[tuple[int, EvaluationRecord]]:
        """With a cursor > after, oldest first; each with its cursor. One for each (version, client); the newest stands."""
        ...

    async def latest_evaluations(self, run: RunId, versions: int) -> Sequence[EvaluationRecord]:
        """Those of the newest evaluated versions (so many of them), by version then group."""
        ...

    async def save_client(self, client: ClientRecord) -> None:
        """Inserts, or updates all but created_s."""
        ...

    async def clients(self) -> Sequence[ClientRecord]:
        """Sorted by client."""
        ...

    async def close(self) -> None: ...
