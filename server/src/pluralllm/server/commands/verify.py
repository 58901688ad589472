"""Checks that the stored data satisfies every rule in the constant INVARIANTS. Every fault test ends with this check."""

import asyncio
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pluralllm.common.errors.membership import AuditBroken
from pluralllm.common.errors.private_rounds import (
    AggregateDiffers,
    BadView,
    DealtWrongly,
    RosterDiverged,
    SumImplausible,
)
from pluralllm.common.errors.tree import Corrupt, InvalidArgument, NotFound, PluginBroken, PluginMissing, PluralError
from pluralllm.common.predictor.architecture import update_layout
from pluralllm.common.private_rounds.roster import Roster
from pluralllm.common.trust.audit_chain import FIRST_PREVIOUS, check_chain
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.weights.update_format import update_format
from pluralllm.common.words.ids import ClientId, Digest, RoundNumber, RunId
from pluralllm.common.words.spec import RunSpec, parse_spec
from pluralllm.server.aggregation.next_version import write_next
from pluralllm.server.aggregation.private_version import read_transcript, write_again
from pluralllm.server.aggregation.update_files import check_update
from pluralllm.server.members.roster_log import extended
from pluralllm.server.process.config import ServerConfig
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.machine import step
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs.changes import change_of
from pluralllm.server.runs.checkpoints import Content, Remembered, content_of
from pluralllm.server.runs.live_run import first_state
from pluralllm.server.storage.blobs import Blobs, verify
from pluralllm.server.storage.by_url import blobs_of, opened_alone
from pluralllm.server.storage.membership import MembershipStore
from pluralllm.server.storage.retention import kept_blobs
from pluralllm.server.storage.sql_membership import SqlMembership
from pluralllm.server.storage.state_directory import StateDirectory
from pluralllm.server.storage.store import (
    Change,
    Checkpoint,
    EvaluationRecord,
    EventRecord,
    ReceiptRecord,
    RoundOutcome,
    RoundRecord,
    RunRecord,
    Store,
)

PAGE = 1000
NORM_TOLERANCE = 1e-4  # relative; another machine adds the squares in another order

INVARIANTS = {
    1: "an acknowledged update is in exactly one aggregate of its round, or the round is abandoned with a reason, "
    "or its member was revoked or complained of before the round was averaged",
    2: "no update counts twice, no unacknowledged one counts",
    3: "model versions are gap-free, monotone and hash-chained",
    4: "the weights and scales in a round's record are those of its receipts, and a receipt's norm is that of its update",
    5: "aggregating the stored updates again gives the same bits",
    6: "replaying the event log gives what the tables say",
    7: "stored bytes are what their digest says",
    8: "the audit log is an unbroken hash chain",
    9: "a private round's transcript is signed by as many members as must, over one sum, and its secrets fit what their owners "
    "have signed",
    10: "no secret of a member of a private round is revealed in both kinds",
    11: "the roster of peer keys is an unbroken hash chain, in which each key has one member",
}


# Errors that say that a private round's transcript is none of an honest round.
OF_TRANSCRIPTS = (AggregateDiffers, BadView, DealtWrongly, InvalidArgument, SumImplausible)

Problem = tuple[int, str]  # invariant and what is wrong


@dataclass(frozen=True, slots=True)
class Finding:
    run: str
    invariant: int
    problem: str


@dataclass(slots=True)
class Report:
    """The result of a verification: counts of checked items, and the violations that were detected."""

    runs: int = 0
    versions: int = 0
    receipts: int = 0
    aggregates_repeated: int = 0
    aggregates_not_kept: int = 0  # versions whose updates are no longer kept
    orphan_blobs: int = 0
    audit_entries: int = 0
    roster_entries: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not self.findings

    def lines(self) -> list[str]:
        """Returns the report as lines of text for a person."""
        checked = (
            f"{self.runs} runs, {self.versions} versions, {self.receipts} receipts; {self.aggregates_repeated} aggregates "
            f"repeated bit for bit, {self.aggregates_not_kept} not (updates past retention); {self.orphan_blobs} orphan blobs; "
            f"{self.audit_entries} entries of the audit log, {self.roster_entries} of the roster"
        )
        problems = [f"{f.run}, invariant {f.invariant} ({INVARIANTS[f.invariant]}): {f.problem}" for f in self.findings]
        return [checked, *problems, "clean" if self.is_clean else f"{len(problems)} findings"]

    def to_json(self) -> dict[str, Any]:
        return {
            "clean": self.is_clean,
            "runs": self.runs,
            "versions": self.versions,
            "receipts": self.receipts,
            "aggregates_repeated": self.aggregates_repeated,
            "aggregates_not_kept": self.aggregates_not_kept,
            "orphan_blobs": self.orphan_blobs,
            "audit_entries": self.audit_entries,
            "roster_entries": self.roster_entries,
            "findings": [{"run": f.run, "invariant": f.invariant, "problem": f.problem} for f in self.findings],
        }


@dataclass(slots=True)
class Tables:
    """The database rows of one run: one dictionary for each kind of row.

    One object of the class holds the rows in the database. A second object holds the rows that a replay of the event log makes.
    """

    versions: dict[int, VersionRecord] = field(default_factory=dict)
    rounds: dict[int, RoundRecord] = field(default_factory=dict)
    receipts: dict[tuple[int, str], ReceiptRecord] = field(default_factory=dict)
    evaluations: dict[tuple[int, str], EvaluationRecord] = field(default_factory=dict)
    messages: dict[tuple[int, str, str], Digest] = field(default_factory=dict)  # digests of a private round's messages
    checkpoint: Checkpoint | None = None

    def write(self, change: Change) -> None:
        """Adds, replaces and removes rows in this object. `change` lists the new rows and the removed rows of one event."""
        self.versions |= {row.version: row for row in change.versions}
        self.rounds |= {row.round: row for row in change.rounds}
        self.receipts |= {(row.round, row.receipt.client): row for row in change.receipts}
        for key in change.withdrawn:
            self.receipts.pop(key, None)
        self.evaluations |= {(row.score.version, row.score.client): row for row in change.evaluations}
        self.messages |= {(row.round, row.step, row.client): row.sha256 for row in change.messages}
        self.messages = {key: sha256 for key, sha256 in self.messages.items() if key[0] not in change.ended}
        self.checkpoint = change.checkpoint or self.checkpoint

    def acknowledged(self, number: int) -> tuple[tuple[ClientId, Digest, int], ...]:
        """Returns a triple for each receipt of round `number`, sorted by client.

        A triple has the client, the digest of the client's update, and the client's number of examples.
        """
        receipts = (row.receipt for row in self.receipts.values() if row.round == number)
        return tuple(sorted((receipt.client, receipt.digest, receipt.examples) for receipt in receipts))


async def verify_stopped(config: ServerConfig) -> Report:
    """Verifies the state of the configured coordinator, which must be stopped. Raises InUse while a coordinator serves."""
    with StateDirectory(config.state_dir) as state:
        async with opened_alone(config, state) as store:
            return await verify_state(store, SqlMembership(store), blobs_of(config, state), state.scratch)


async def verify_state(store: Store, membership: MembershipStore, blobs: Blobs, scratch: Path) -> Report:
    """Checks every run and the audit log, and returns a report. No process may write to the stores meanwhile.

    The function reads much data: each kept update once, and each model version up to three times. `scratch` is the folder for
    temporary files.
    """
    report = Report()
    for record in await store.runs():
        tables, log = await _read(store, record.id)
        report.runs += 1
        report.versions += len(tables.versions)
        report.receipts += len(tables.receipts)
        problems = [*_check_chain(record, tables), *_check_counts(tables)]
        try:
            spec = parse_spec(record.spec_json, f"of run {record.id}")
        except PluralError as error:
            problems.append((3, str(error)))
        else:
            replayed, over = _check_replay(record, spec, tables, log)
            problems += [*replayed, *await _check_blobs(blobs, tables, over)]
            problems += await _check_aggregates(report, spec, blobs, scratch, tables)
        report.findings += [Finding(f"run {record.id}", invariant, problem) for invariant, problem in problems]
    await _check_audit_log(report, membership)
    await _check_roster(report, membership)
    named = await kept_blobs(store, 1_000_000)
    report.orphan_blobs = len(set(await blobs.digests()) - named)
    return report


async def _check_audit_log(report: Report, membership: MembershipStore) -> None:
    head = (0, FIRST_PREVIOUS)
    while page := await membership.audit_entries(head[0], PAGE):
        try:
            head = check_chain(page, *head)
        except AuditBroken as error:
            report.findings.append(Finding("audit log", 8, str(error)))
            return
        report.audit_entries += len(page)


async def _check_roster(report: Report, membership: MembershipStore) -> None:
    roster = Roster()
    while page := await membership.roster_rows(roster.sequence, PAGE):
        try:
            roster = extended(roster, page)
        except RosterDiverged as error:
            report.findings.append(Finding("roster", 11, error.problem))
            return
    report.roster_entries = roster.sequence


async def _read(store: Store, run: RunId) -> tuple[Tables, list[EventRecord]]:
    tables = Tables(versions={row.version: row for row in await store.versions(run)})
    tables.checkpoint = await store.checkpoint(run)
    before: int | None = None
    while page := await store.rounds(run, before, PAGE):
        tables.rounds |= {row.round: row for row in page}
        before = page[-1].round
    for number in tables.rounds:
        tables.receipts |= {(number, row.receipt.client): row for row in await store.receipts(run, RoundNumber(number))}
    for message in await store.round_messages(run):
        sha256 = Digest(hashlib.sha256(message.body).hexdigest())
        tables.messages[message.round, message.step, message.client] = sha256
    cursor = 0
    while scores := await store.evaluations(run, cursor, PAGE):
        tables.evaluations |= {(row.score.version, row.score.client): row for _, row in scores}
        cursor = scores[-1][0]
    log: list[EventRecord] = []
    while events := await store.events(run, log[-1].sequence if log else 0, PAGE):
        log += events
    return tables, log


def _check_chain(record: RunRecord, tables: Tables) -> Iterator[Problem]:
    if hashlib.sha256(record.spec_json).hexdigest() != record.spec_sha256:
        yield 3, "the stored spec is not the one its hash is of"
    parent = ""
    for number in range(max(tables.versions, default=0) + 1):
        if (version := tables.versions.get(number)) is None:
            yield 3, f"version {number} is missing"
            continue
        if version.parent_sha256 != parent:
            yield 3, f"version {number} does not name its parent's record"
        if version.spec_sha256 != record.spec_sha256:
            yield 3, f"version {number} was made under another spec"
        parent = version.record_sha256


def _check_counts(tables: Tables) -> Iterator[Problem]:
    made: dict[int, VersionRecord] = {row.round: row for row in tables.versions.values() if row.version > 0}
    for version in tables.versions.values():
        if version.version > 0 and version.round not in tables.rounds:
            yield 2, f"version {version.version} is of a round that never was"
        if version.version > 0 and made[version.round] is not version:
            yield 2, f"round {version.round} made more than one version"
    for number, row in tables.rounds.items():
        match row.outcome:
            case RoundOutcome.CLOSED if number not in made or made[number].version != row.version:
                yield 1, f"round {number} is closed, its version is not there"
            case RoundOutcome.CLOSED:
                yield from _check_members(number, tables.acknowledged(number), made[number])
            case _ if number in made:
                yield 2, f"round {number} is {row.outcome} and made a version"
            case RoundOutcome.ABANDONED if not row.reason:
                yield 1, f"round {number} is abandoned without a reason"
            case _:
                pass


def _check_members(
    number: int, acknowledged: tuple[tuple[ClientId, Digest, int], ...], version: VersionRecord
) -> Iterator[Problem]:
    receipts, counted = Counter(row[:2] for row in acknowledged), Counter(row[:2] for row in version.updates)
    for client, digest in receipts - counted:
        yield 1, f"round {number}: update {digest[:12]} of {client} is acknowledged and in no aggregate"
    if version.weights and len(version.weights) != len(version.updates):
        yield 4, f"round {number}: version {version.version} has {len(version.weights)} weights"
    if version.scales and len(version.scales) != len(version.updates):
        yield 4, f"round {number}: version {version.version} has {len(version.scales)} scales"
    for client, digest in counted - receipts:
        yield 2, f"round {number}: update {digest[:12]} of {client} counts twice or was never acknowledged"
    if receipts == counted and version.updates != acknowledged:
        yield 4, f"round {number}: the example counts of version {version.version} are not those of the receipts"


def _check_replay(
    record: RunRecord, spec: RunSpec, tables: Tables, log: list[EventRecord]
) -> tuple[list[Problem], bool]:
    """Replays the event log with the coordinator's own code and compares each resulting row with the stored row.

    Returns the problems, and whether the run has ended. If the log cannot be replayed, the run counts as ended.
    """
    if (newest := tables.versions.get(0)) is None:
        return [], True
    state, replayed = first_state(record, spec, newest), Tables(versions={0: newest})
    open_round: RoundRecord | None = None
    remembered, checked = Remembered(), tables.checkpoint is None
    problems: list[Problem] = []
    for sequence, row in enumerate(log, 1):
        if row.sequence != sequence:
            return [(6, f"event {sequence} is missing")], True
        try:
            event = ev.event_from_facts(row.kind, dict(row.facts))
            state, effects = step(state, event)
        except (PluralError, KeyError, ValueError) as error:
            return [(6, f"event {sequence} cannot be replayed: {error}")], True
        change = change_of(record, state, sequence, event, effects, open_round, newest)
        replayed.write(change)
        open_round = change.rounds[-1] if change.rounds else open_round
        newest = change.versions[-1] if change.versions else newest
        remembered.note(event, effects)
        if tables.checkpoint is not None and tables.checkpoint.sequence == sequence:
            checked = True
            problems += _check_checkpoint(tables.checkpoint, Content(state, event.at_s, remembered))
    if not checked:
        problems.append((6, "the checkpoint has seen events that the log does not have"))
    problems += [
        *_differences("version", tables.versions, replayed.versions),
        *_differences("round", tables.rounds, replayed.rounds),
        *_differences("receipt", tables.receipts, replayed.receipts),
        *_differences("evaluation", tables.evaluations, replayed.evaluations),
        *_differences("message", tables.messages, replayed.messages),
    ]
    return problems, state.phase is Phase.ENDED


def _check_checkpoint(checkpoint: Checkpoint, replayed: Content) -> Iterator[Problem]:
    try:
        if content_of(checkpoint) not in (None, replayed):
            yield 6, f"the checkpoint after event {checkpoint.sequence} is not the state that the log gives"
    except Corrupt as error:
        yield 7, str(error)


def _differences(what: str, stored: Mapping[Any, Any], replayed: Mapping[Any, Any]) -> Iterator[Problem]:
    for key in sorted(stored.keys() | replayed.keys()):
        if stored.get(key) != replayed.get(key):
            yield 6, f"{what} {key}: stored is {stored.get(key)}, by the log it is {replayed.get(key)}"


async def _check_blobs(blobs: Blobs, tables: Tables, over: bool) -> list[Problem]:
    """Checks the blobs of all model versions, the open round's updates, and the optimizer moments.

    The optimizer moments are the state of the server's optimizer, which the next round needs. `over` is true if the run has
    ended.
    """
    problems: list[Problem] = []
    if tables.versions and not over:
        newest = tables.versions[max(tables.versions)]
        for moment in newest.moments:
            problems += await _check_blob(blobs, moment, 7, f"a moment of model version {newest.version}")
    for version in tables.versions.values():
        problems += await _check_blob(blobs, version.digest, 7, f"model version {version.version}")
    for (number, client), row in tables.receipts.items():
        if tables.rounds[number].outcome is RoundOutcome.OPEN:
            what = f"the acknowledged update of {client} in round {number}"
            problems += await _check_blob(blobs, row.receipt.digest, 1, what)
    return problems


async def _check_blob(blobs: Blobs, digest: Digest, if_lost: int, what: str) -> list[Problem]:
    try:
        verify(await blobs.path(digest), digest)
    except NotFound as error:
        return [(if_lost, f"{what}: {error}")]
    except (PluralError, OSError) as error:
        return [(7, f"{what}: {error}")]
    return []


async def _check_aggregates(
    report: Report, spec: RunSpec, blobs: Blobs, scratch: Path, tables: Tables
) -> list[Problem]:
    """Makes each version of a run again whose updates are kept. A plug-in that cannot be used is one problem for all of them."""
    problems: list[Problem] = []
    unusable: list[Problem] = []  # one for each version that the plug-in did not make again
    for version in tables.versions.values():
        try:
            problems += await _check_aggregate(report, spec, blobs, scratch, tables, version)
        except (PluginMissing, PluginBroken) as error:
            unusable.append((5, f"version {version.version} cannot be made again here: {error}"))
            problems += await _check_kept_norms(spec, blobs, tables, version)
    return unusable[:1] + problems


async def _check_aggregate(
    report: Report, spec: RunSpec, blobs: Blobs, scratch: Path, tables: Tables, version: VersionRecord
) -> list[Problem]:
    """Makes a version again if its updates are kept. Raises PluginMissing or PluginBroken if the run's plug-in cannot do so."""
    base = tables.versions.get(version.version - 1)
    lengths = {len(version.weights), len(version.scales)}
    if base is None or not lengths <= {0, len(version.updates)}:  # version 0, or reported already
        return []
    receipts = [ev.Receipt(*update) for update in version.updates]
    draft = scratch / f"verify-{version.version}"
    bases = () if spec.rewards is not None else (base.digest, *base.moments)
    if version.transcript:
        bases = (*bases, Digest(version.transcript))
    if not all([await blobs.exists(digest) for digest in (*bases, *(receipt.digest for receipt in receipts))]):
        report.aggregates_not_kept += 1
        return []
    try:
        if version.transcript:
            made = await write_again(blobs, spec, base, version, draft)
        else:
            made = await write_next(blobs, spec, base, receipts, version.weights, version.scales, draft)
        problems = await _check_norms(spec, blobs, tables, version)
    except OF_TRANSCRIPTS as error:
        return [(9, f"round {version.round}: {error}"), *await _in_both_kinds(blobs, version)]
    except (PluginMissing, PluginBroken):
        raise
    except (PluralError, OSError) as error:
        return [_unreadable(version, error)]
    for file in made.files:
        file.path.unlink()
    report.aggregates_repeated += 1
    stored, again = (version.digest, *version.moments), tuple(file.manifest.digest for file in made.files)
    if again != stored:
        names = ("the model", "the first moment", "the second moment")
        differing = [name for name, *both in zip(names, stored, again, strict=False) if both[0] != both[1]]
        what = " and ".join(differing) or "the number of moments"
        problems.append((5, f"version {version.version}: aggregating again gives other bits of {what}"))
    row = tables.rounds.get(version.round)
    if row is not None and row.tail not in ((), made.tail):  # an earlier release has recorded none
        problems.append((9, f"round {version.round}: the tail on record is not that of the sum"))
    if made.chosen and made.chosen != version.weights:
        problems.append((4, f"round {version.round}: the rule chooses other updates than those on record"))
    return problems


async def _in_both_kinds(blobs: Blobs, version: VersionRecord) -> list[Problem]:
    """Returns a problem for each member whose two secrets are both in a transcript: its update could be read."""
    try:
        transcript = await read_transcript(blobs, version)
    except (PluralError, OSError):  # it is a problem already
        return []
    own, masks = {one.name for one in transcript.own_masks}, {one.name for one in transcript.outsiders}
    return [
        (10, f"round {version.round}: both secrets of {name} are in the transcript") for name in sorted(own & masks)
    ]


async def _check_kept_norms(spec: RunSpec, blobs: Blobs, tables: Tables, version: VersionRecord) -> list[Problem]:
    """Checks the norms of a version's updates, as `_check_norms`. An update that cannot be read is a problem."""
    try:
        return await _check_norms(spec, blobs, tables, version)
    except (PluralError, OSError) as error:
        return [_unreadable(version, error)]


def _unreadable(version: VersionRecord, error: Exception) -> Problem:
    return 7, f"what version {version.version} is made of: {error}"


async def _check_norms(spec: RunSpec, blobs: Blobs, tables: Tables, version: VersionRecord) -> list[Problem]:
    """Calculates the norms of a version's updates again, because the scales of updates follow from the recorded norms."""
    problems: list[Problem] = []
    form = update_format(update_layout(spec, version.version - 1), spec.updates.encoding)
    for client, digest, _ in version.updates:
        row = tables.receipts.get((version.round, client))
        if row is None or (recorded := row.receipt.norm) is None:
            continue
        norm = await asyncio.to_thread(check_update, await blobs.path(digest), form, math.inf)
        if not math.isclose(norm, recorded, rel_tol=NORM_TOLERANCE):
            problem = f"the norm of the update of {client} is {norm:g}, on record is {recorded:g}"
            problems.append((4, f"round {version.round}: {problem}"))
    return problems
