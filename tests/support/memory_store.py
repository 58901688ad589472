"""A store in memory, for simulations and fast tests: the contract of server/storage/store.py over plain dictionaries.

Written rows stay in the `Tables`. A store that is opened on the same tables again reads them, as after a restart. Rows are
immutable values; the facts of an event are kept as text, as in a database.
"""

import bisect
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from pluralllm.common.errors.membership import InviteUsed
from pluralllm.common.errors.tree import StoreFailed
from pluralllm.common.trust.audit_chain import FIRST_PREVIOUS, AuditEntry
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.words.ids import ClientId, Digest, GroupName, ModelVersion, RoundNumber, RunId
from pluralllm.server.rounds.events import RoundStep, event_kind, event_to_facts
from pluralllm.server.storage.membership import (
    Everyone,
    InviteRecord,
    IssuedCertificate,
    Member,
    MembershipChange,
    RosterRow,
)
from pluralllm.server.storage.store import (
    FIRST_VERSION,
    Change,
    Checkpoint,
    ClientRecord,
    EvaluationRecord,
    EventRecord,
    ReceiptRecord,
    RoundBlobs,
    RoundMessage,
    RoundOutcome,
    RoundRecord,
    RunBlobs,
    RunRecord,
    SettledRun,
)

# A call before an operation starts, or after it is done, with the operation's name and its subject. It may raise.
Hook = Callable[[str, object], Awaitable[None]]
Row = TypeVar("Row")
ANOTHER_WRITER = "another writer was there first ({what} is taken)"


async def nothing(operation: str, about: object) -> None:
    """A hook that does nothing."""


class Rows(Generic[Row]):
    """Rows by number, in the order of their numbers: a table with an index."""

    def __init__(self) -> None:
        self._rows: dict[int, Row] = {}
        self._numbers: list[int] = []  # sorted

    def __contains__(self, number: int) -> bool:
        return number in self._rows

    def get(self, number: int) -> Row | None:
        return self._rows.get(number)

    def put(self, number: int, row: Row) -> None:
        """Inserts a row, or replaces the row with this number."""
        if number not in self._rows:
            bisect.insort(self._numbers, number)
        self._rows[number] = row

    def after(self, number: int, limit: int) -> list[tuple[int, Row]]:
        """Returns at most `limit` rows with a higher number and their numbers, the lowest number first."""
        first = bisect.bisect_right(self._numbers, number)
        return [(found, self._rows[found]) for found in self._numbers[first : first + limit]]

    def before(self, number: int | None, limit: int) -> list[Row]:
        """Returns at most `limit` rows with a lower number, or of all rows if `number` is None; the highest number first."""
        end = len(self._numbers) if number is None else bisect.bisect_left(self._numbers, number)
        return [self._rows[found] for found in reversed(self._numbers[max(0, end - limit) : end])]

    def all(self) -> list[Row]:
        return [self._rows[found] for found in self._numbers]


@dataclass(slots=True)
class RunTables:
    """The rows of one run."""

    record: RunRecord
    versions: Rows[VersionRecord] = field(default_factory=Rows)
    events: Rows[tuple[float, str, str]] = field(default_factory=Rows)  # at_s, kind, facts as JSON; by sequence
    rounds: Rows[RoundRecord] = field(default_factory=Rows)
    receipts: dict[int, dict[ClientId, ReceiptRecord]] = field(default_factory=dict)
    evaluations: dict[tuple[ModelVersion, ClientId], tuple[int, EvaluationRecord]] = field(default_factory=dict)
    messages: dict[tuple[RoundNumber, RoundStep, ClientId], RoundMessage] = field(default_factory=dict)
    cursor: int = 0  # the cursor of the newest evaluation; the dictionary is in the order of the cursors
    checkpoint: Checkpoint | None = None


@dataclass(slots=True)
class Tables:
    """All durable state of a coordinator's database."""

    runs: dict[RunId, RunTables] = field(default_factory=dict)
    clients: dict[ClientId, ClientRecord] = field(default_factory=dict)
    members: dict[ClientId, Member] = field(default_factory=dict)
    certificates: dict[str, IssuedCertificate] = field(default_factory=dict)
    invites: dict[str, InviteRecord] = field(default_factory=dict)
    roster: list[RosterRow] = field(default_factory=list)
    audit_log: list[tuple[AuditEntry, str]] = field(default_factory=list)


class MemoryStore:
    """The contract of store.Store. Every operation is atomic: it does not wait between its first read and its last write."""

    def __init__(self, tables: Tables, before: Hook = nothing, after: Hook = nothing) -> None:
        self._tables, self._before, self._after = tables, before, after

    async def create_run(self, run: RunRecord, first_version: VersionRecord) -> None:
        await self._before("store.create_run", run)
        if run.id in self._tables.runs:
            raise StoreFailed(problem=ANOTHER_WRITER.format(what=f"run {run.id}"))
        self._tables.runs[run.id] = RunTables(run)
        self._tables.runs[run.id].versions.put(first_version.version, first_version)
        await self._after("store.create_run", run)

    async def runs(self) -> Sequence[RunRecord]:
        await self._before("store.runs", None)
        return [run.record for run in self._tables.runs.values()]

    async def apply(self, changes: Sequence[Change]) -> None:
        await self._before("store.apply", changes)
        _check_keys(self._tables, changes)
        for change in changes:
            _write(self._tables.runs[change.run], change)
        await self._after("store.apply", changes)

    async def events(self, run: RunId, after: int, limit: int) -> Sequence[EventRecord]:
        await self._before("store.events", run)
        found = self._tables.runs[run].events.after(after, limit)
        return [EventRecord(sequence, at_s, kind, json.loads(facts)) for sequence, (at_s, kind, facts) in found]

    async def checkpoint(self, run: RunId) -> Checkpoint | None:
        await self._before("store.checkpoint", run)
        return self._tables.runs[run].checkpoint

    async def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        await self._before("store.save_checkpoint", checkpoint)
        self._tables.runs[checkpoint.run].checkpoint = checkpoint
        await self._after("store.save_checkpoint", checkpoint)

    async def settled_runs(self, runs: Sequence[RunId]) -> Sequence[SettledRun]:
        await self._before("store.settled_runs", runs)
        settled = []
        for tables in (self._tables.runs[run] for run in runs if run in self._tables.runs):
            checkpoint, versions = tables.checkpoint, tables.versions.all()
            sequences = [number for number, _ in tables.events.after(0, 10**9)]
            if checkpoint is not None and sequences[-1:] == [checkpoint.sequence]:
                settled.append(SettledRun(checkpoint, versions[0], versions[-1]))
        return settled

    async def round(self, run: RunId, number: RoundNumber) -> RoundRecord | None:
        await self._before("store.round", number)
        return self._tables.runs[run].rounds.get(number)

    async def rounds(self, run: RunId, before: int | None, limit: int) -> Sequence[RoundRecord]:
        await self._before("store.rounds", run)
        return self._tables.runs[run].rounds.before(before, limit)

    async def receipts(self, run: RunId, number: RoundNumber) -> Sequence[ReceiptRecord]:
        await self._before("store.receipts", number)
        return [row for _, row in sorted(self._tables.runs[run].receipts.get(number, {}).items())]

    async def receipt_counts(self, run: RunId, numbers: Sequence[RoundNumber]) -> Mapping[RoundNumber, int]:
        await self._before("store.receipt_counts", numbers)
        rounds = self._tables.runs[run].receipts if run in self._tables.runs else {}
        return {number: len(rounds[number]) for number in numbers if rounds.get(number)}

    async def receipt(self, run: RunId, number: RoundNumber, client: ClientId) -> ReceiptRecord | None:
        await self._before("store.receipt", client)
        return self._tables.runs[run].receipts.get(number, {}).get(client)

    async def round_messages(
        self, run: RunId, number: RoundNumber | None = None, step: RoundStep | None = None
    ) -> Sequence[RoundMessage]:
        await self._before("store.round_messages", step)
        found = [row for _, row in sorted(self._tables.runs[run].messages.items())]
        return [row for row in found if number in (None, row.round) and step in (None, row.step)]

    async def version(self, run: RunId, number: ModelVersion) -> VersionRecord | None:
        await self._before("store.version", number)
        return self._tables.runs[run].versions.get(number)

    async def versions(self, run: RunId, first: ModelVersion = FIRST_VERSION) -> Sequence[VersionRecord]:
        await self._before("store.versions", run)
        return [row for row in self._tables.runs[run].versions.all() if row.version >= first]

    async def model_digests(self, run: RunId) -> Sequence[Digest]:
        await self._before("store.model_digests", run)
        return [version.digest for version in self._tables.runs[run].versions.all()]

    async def named_blobs(self, newest_rounds: int) -> Sequence[RunBlobs]:
        await self._before("store.named_blobs", newest_rounds)
        return [_blobs_of(run, newest_rounds) for run in self._tables.runs.values()]

    async def evaluations(self, run: RunId, after: int, limit: int) -> Sequence[tuple[int, EvaluationRecord]]:
        await self._before("store.evaluations", run)
        found = list(self._tables.runs[run].evaluations.values())
        first = bisect.bisect_right(found, after, key=lambda row: row[0])
        return found[first : first + limit]

    async def latest_evaluations(self, run: RunId, versions: int) -> Sequence[EvaluationRecord]:
        await self._before("store.latest_evaluations", run)
        found = [row for _, row in self._tables.runs[run].evaluations.values()]
        newest = sorted({row.score.version for row in found}, reverse=True)[:versions]
        kept = [row for row in found if row.score.version in newest]
        return sorted(kept, key=lambda row: (row.score.version, row.score.group))

    async def alignment_scores(self, run: RunId, version: ModelVersion) -> Sequence[tuple[GroupName, float | None]]:
        await self._before("store.alignment_scores", run)
        found = [row.score for _, row in self._tables.runs[run].evaluations.values() if row.score.version == version]
        return sorted(((score.group, score.alignment_score) for score in found), key=lambda pair: pair[0])

    async def save_client(self, client: ClientRecord) -> None:
        await self._before("store.save_client", client)
        known = self._tables.clients.get(client.client)
        found = client if known is None else replace(client, created_s=known.created_s)
        self._tables.clients[client.client] = found
        await self._after("store.save_client", client)

    async def save_last_seen(self, times_s: Mapping[ClientId, float]) -> None:
        await self._before("store.save_last_seen", times_s)
        for client, at_s in times_s.items():
            if (known := self._tables.clients.get(client)) is not None:
                self._tables.clients[client] = replace(known, last_seen_s=at_s)
        await self._after("store.save_last_seen", times_s)

    async def clients(self) -> Sequence[ClientRecord]:
        await self._before("store.clients", None)
        return [row for _, row in sorted(self._tables.clients.items())]

    async def close(self) -> None:
        """Does nothing; the tables keep their rows."""


def _blobs_of(run: RunTables, newest_rounds: int) -> RunBlobs:
    versions, rounds = run.versions.all(), []
    for record in run.rounds.before(None, newest_rounds):
        updates = {row.receipt.digest for row in run.receipts.get(record.round, {}).values()}
        is_open, is_closed = record.outcome is RoundOutcome.OPEN, record.outcome is RoundOutcome.CLOSED
        begins_with = versions[record.base_version].moments if is_closed else ()
        transcript = versions[record.version].transcript if is_closed and record.version is not None else ""
        others = {Digest(digest) for digest in (record.rollouts, transcript) if digest}
        rounds.append(RoundBlobs(is_open, frozenset(updates | others), frozenset(begins_with)))
    digests = frozenset(version.digest for version in versions)
    return RunBlobs(run.record.id, digests, frozenset(versions[-1].moments), tuple(rounds))


def _check_keys(tables: Tables, changes: Sequence[Change]) -> None:
    """Checks what a database's primary keys guarantee. Raises StoreFailed before anything is written."""
    taken: list[str] = []
    new: set[tuple[str, int]] = set()
    for change in changes:
        run, receipts, versions = tables.runs[change.run], change.receipts, change.versions
        key = (change.run, change.sequence)
        taken += [f"sequence {change.sequence}"] if change.sequence in run.events or key in new else []
        taken += [f"receipt {r.receipt.client}" for r in receipts if r.receipt.client in run.receipts.get(r.round, {})]
        taken += [f"version {version.version}" for version in versions if version.version in run.versions]
        new.add(key)
    if taken:
        raise StoreFailed(problem=ANOTHER_WRITER.format(what=", ".join(taken)))


def _write(run: RunTables, change: Change) -> None:
    facts = json.dumps(event_to_facts(change.event))
    run.events.put(change.sequence, (change.event.at_s, event_kind(change.event), facts))
    for row in change.receipts:
        run.receipts.setdefault(row.round, {})[row.receipt.client] = row
    for number, client in change.withdrawn:
        run.receipts.get(number, {}).pop(client, None)
    run.messages |= {(row.round, row.step, row.client): row for row in change.messages}
    run.messages = {key: row for key, row in run.messages.items() if key[0] not in change.ended}
    for version in change.versions:
        run.versions.put(version.version, version)
    for round_row in change.rounds:
        run.rounds.put(round_row.round, round_row)
    for evaluation in change.evaluations:
        key = (evaluation.score.version, evaluation.score.client)
        run.evaluations.pop(key, None)
        run.cursor += 1
        run.evaluations[key] = (run.cursor, evaluation)
    run.checkpoint = change.checkpoint or run.checkpoint


class MemoryMembership:
    """The contract of membership.MembershipStore, over the same tables."""

    def __init__(self, tables: Tables, before: Hook = nothing, after: Hook = nothing) -> None:
        self._tables, self._before, self._after = tables, before, after

    async def everyone(self) -> Everyone:
        await self._before("membership.everyone", None)
        tables = self._tables
        members = [row for _, row in sorted(tables.members.items())]
        return Everyone(members, list(tables.certificates.values()), list(tables.invites.values()))

    async def change_membership(self, change: MembershipChange) -> AuditEntry:
        await self._before("membership.change_membership", change)
        tables, new = self._tables, change.entry
        if change.spends is not None:
            invite = tables.invites.get(change.spends)
            if invite is None or invite.used_by_key or invite.withdrawn:
                raise InviteUsed(name="" if invite is None else invite.name)
        for row in change.roster:
            if row.entry.sequence != len(tables.roster) + 1:
                raise StoreFailed(problem=ANOTHER_WRITER.format(what=f"entry {row.entry.sequence} of the roster"))
        tables.roster += change.roster
        tables.members |= {row.name: row for row in change.members}
        tables.certificates |= {row.serial: row for row in change.certificates}
        tables.invites |= {row.token_sha256: row for row in change.invites}
        sequence, previous = self._head()
        entry = AuditEntry(
            sequence=sequence + 1,
            at_us=round(new.at_s * 1e6),
            actor=new.actor,
            serial=new.serial,
            action=new.action,
            object=new.object,
            result=new.result,
            facts_json=new.facts_json,
            previous_sha256=previous,
        )
        tables.audit_log.append((entry, entry.sha256))
        await self._after("membership.change_membership", change)
        return entry

    async def audit_entries(self, after: int, limit: int) -> Sequence[tuple[AuditEntry, str]]:
        await self._before("membership.audit_entries", after)
        return self._tables.audit_log[after : after + limit]

    async def roster_rows(self, after: int, limit: int) -> Sequence[RosterRow]:
        await self._before("membership.roster_rows", after)
        return self._tables.roster[after : after + limit]

    async def audit_head(self) -> tuple[int, str]:
        await self._before("membership.audit_head", None)
        return self._head()

    def _head(self) -> tuple[int, str]:
        log = self._tables.audit_log
        return (log[-1][0].sequence, log[-1][1]) if log else (0, FIRST_PREVIOUS)
