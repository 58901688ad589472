"""The coordinator's records, and the protocol of the store that keeps the records. sql_store.py is the store in SQL."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.words.ids import ClientId, Digest, GroupName, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.noise import NoiseStatement
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.rounds.events import Event, Receipt, RoundStep, Score

FIRST_VERSION = ModelVersion(0)  # the number of the model that a run begins with


class RoundOutcome(StrEnum):
    OPEN = "open"
    CLOSED = "closed"
    ABANDONED = "abandoned"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The record of a run at its creation. The run's events record everything that happened to the run later."""

    id: RunId
    spec_json: bytes  # canonical JSON; sha256(spec_json) == spec_sha256
    spec_sha256: Digest
    created_s: float


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
    tail: tuple[int, ...] = ()  # of the sum of a private round that is closed (common.private_rounds.ring); else empty


@dataclass(frozen=True, slots=True)
class ReceiptRecord:
    run: RunId
    round: RoundNumber
    receipt: Receipt
    created_s: float


@dataclass(frozen=True, slots=True)
class RoundMessage:
    """A message that a member has sent in a private round. It is kept until the round ends."""

    run: RunId
    round: RoundNumber
    step: RoundStep
    client: ClientId
    sha256: Digest  # of the body
    body: bytes


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
class Checkpoint:
    """A run's state after one of its events. The event log is the truth; the state saves a start the events before it."""

    run: RunId
    sequence: int  # number of the last event that the state has seen
    format: int  # of the content: checkpoints.py
    content: str  # JSON
    sha256: Digest  # of the content in UTF-8


@dataclass(frozen=True, slots=True)
class SettledRun:
    """The rows of a run whose newest checkpoint has seen the whole event log."""

    checkpoint: Checkpoint
    first: VersionRecord  # row of version 0
    newest: VersionRecord


@dataclass(frozen=True, slots=True)
class ClientRecord:
    """A client that has called Hello. The record is kept for ever; a call of Hello with other facts updates it."""

    client: ClientId
    group: GroupName
    role: GroupRole
    training_questions: int
    software_version: str
    created_s: float
    last_seen_s: float
    noise: NoiseStatement | None = None  # as the member declares it; None if it states nothing


@dataclass(frozen=True, slots=True)
class RoundBlobs:
    """The blobs that the rows of one round name."""

    is_open: bool
    digests: frozenset[Digest]  # of the updates, the rollouts and, in a private round, the transcript
    moments: frozenset[Digest]  # of the version that the round began with; empty if the round has not made a version


@dataclass(frozen=True, slots=True)
class RunBlobs:
    """The blobs that the rows of one run name."""

    run: RunId
    versions: frozenset[Digest]
    moments: frozenset[Digest]  # of the newest version
    rounds: tuple[RoundBlobs, ...]  # newest first


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a run's stored state: one event and all rows that the store writes with the event."""

    run: RunId
    sequence: int  # the event's number in its run; a second writer with the same number fails
    event: Event
    rounds: tuple[RoundRecord, ...] = ()  # inserted or replaced
    receipts: tuple[ReceiptRecord, ...] = ()  # inserted
    withdrawn: tuple[tuple[RoundNumber, ClientId], ...] = ()  # receipts deleted: their members were revoked
    evaluations: tuple[EvaluationRecord, ...] = ()  # inserted or replaced
    versions: tuple[VersionRecord, ...] = ()  # inserted
    messages: tuple[RoundMessage, ...] = ()  # inserted or replaced
    ended: tuple[RoundNumber, ...] = ()  # private rounds that have ended: their messages are deleted
    checkpoint: Checkpoint | None = None  # replaces the run's checkpoint


class Store(Protocol):
    """A store of the coordinator's records. A change is durable when its method returns.

    Every method raises StoreFailed if the database fails; StorageFull if no space is left.
    """

    async def create_run(self, run: RunRecord, first_version: VersionRecord) -> None:
        """Inserts a run and its first model version in one transaction.

        Raises StoreFailed if a run with the same id exists. Callers check the id before the call.
        """
        ...

    async def runs(self) -> Sequence[RunRecord]:
        """Returns all runs, oldest first."""
        ...

    async def apply(self, changes: Sequence[Change]) -> None:
        """Writes events and the rows that follow from them, in their order, in one transaction.

        Raises StoreFailed if a run already has an event with the same sequence number. Then nothing is written.
        """
        ...

    async def events(self, run: RunId, after: int, limit: int) -> Sequence[EventRecord]:
        """Returns at most `limit` of a run's events whose sequence number is above `after`, in order."""
        ...

    async def checkpoint(self, run: RunId) -> Checkpoint | None:
        """Returns a run's newest checkpoint, or None if no round has ended yet."""
        ...

    async def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Replaces the checkpoint of a run without an event. Usually a checkpoint comes with the event that it has seen."""
        ...

    async def settled_runs(self, runs: Sequence[RunId]) -> Sequence[SettledRun]:
        """Returns the rows of those of the runs whose newest checkpoint has seen the whole event log.

        The number of queries does not depend on the number of runs.
        """
        ...

    async def round(self, run: RunId, number: RoundNumber) -> RoundRecord | None: ...

    async def rounds(self, run: RunId, before: int | None, limit: int) -> Sequence[RoundRecord]:
        """Returns at most `limit` of a run's rounds, newest first.

        Only rounds with a number below `before` are returned; all rounds if `before` is None.
        """
        ...

    async def receipts(self, run: RunId, number: RoundNumber) -> Sequence[ReceiptRecord]:
        """Returns the receipts of one round, sorted by client."""
        ...

    async def receipt_counts(self, run: RunId, numbers: Sequence[RoundNumber]) -> Mapping[RoundNumber, int]:
        """Returns how many receipts each of these rounds has; a round without any is left out."""
        ...

    async def receipt(self, run: RunId, number: RoundNumber, client: ClientId) -> ReceiptRecord | None: ...

    async def round_messages(
        self, run: RunId, number: RoundNumber | None = None, step: RoundStep | None = None
    ) -> Sequence[RoundMessage]:
        """Returns the messages of an open private round, sorted by step, then by client.

        number: the round; None for all rounds, of which only an open one has messages. step: the only step whose messages are
        returned; None for all steps.
        """
        ...

    async def version(self, run: RunId, number: ModelVersion) -> VersionRecord | None: ...

    async def versions(self, run: RunId, first: ModelVersion = FIRST_VERSION) -> Sequence[VersionRecord]:
        """Returns the model versions of a run from number `first` on, oldest first."""
        ...

    async def model_digests(self, run: RunId) -> Sequence[Digest]:
        """Returns the digests of all model versions of a run, oldest first.

        Version numbers have no gaps, so a version's number is its index in the result.
        """
        ...

    async def named_blobs(self, newest_rounds: int) -> Sequence[RunBlobs]:
        """Returns the blobs that the rows of each run name, those of rounds for the run's newest rounds only.

        All of it is read at one moment.
        """
        ...

    async def evaluations(self, run: RunId, after: int, limit: int) -> Sequence[tuple[int, EvaluationRecord]]:
        """Returns at most `limit` of a run's evaluations, oldest first, each with its cursor.

        A cursor is the number that an evaluation gets when it is stored. Only evaluations with a cursor above `after` are
        returned. The store keeps one evaluation for each version
        and client: a newer evaluation replaces the older evaluation and gets a new cursor.
        """
        ...

    async def latest_evaluations(self, run: RunId, versions: int) -> Sequence[EvaluationRecord]:
        """Returns the evaluations of the newest evaluated model versions, sorted by version, then by group.

        versions: the number of model versions to include.
        """
        ...

    async def alignment_scores(self, run: RunId, version: ModelVersion) -> Sequence[tuple[GroupName, float | None]]:
        """Returns the group and the alignment score of each evaluation of a model version, sorted by group.

        The score is None if the group does not report it.
        """
        ...

    async def save_client(self, client: ClientRecord) -> None:
        """Inserts a client's record, or updates all fields except created_s if the client has a record."""
        ...

    async def save_last_seen(self, times_s: Mapping[ClientId, float]) -> None:
        """Updates the field last_seen_s of clients that have a record, in one transaction. Other clients are left out."""
        ...

    async def clients(self) -> Sequence[ClientRecord]:
        """Returns the records of all clients, sorted by name."""
        ...

    async def close(self) -> None: ...
