"""Checks what is on disk against the invariants of the design; any fault test runs this last."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pluralllm.common.errors import NotFound, PluralError
from pluralllm.common.ids import Digest, RoundNumber, RunId
from pluralllm.common.spec import parse_spec
from pluralllm.server import events as ev
from pluralllm.server.aggregate import gradient_step, weighted_mean, weights_of
from pluralllm.server.blobs import Blobs, verify
from pluralllm.server.live_run import first_state, layout_for
from pluralllm.server.retention import kept_blobs
from pluralllm.server.rounds import step
from pluralllm.server.store import ReceiptRecord, RoundOutcome, RoundRecord, RunRecord, Store, VersionRecord
from pluralllm.server.updates import StoredWeights, average

PAGE = 1000

INVARIANTS = {
    1: "an acknowledged update is in exactly one aggregate of its round, or the round is abandoned with a reason",
    2: "no update counts twice, no unacknowledged one counts",
    3: "model versions are gap-free, monotone and hash-chained",
    4: "the weights in a round's record are those of its receipts",
    5: "aggregating the stored updates again gives the same bits",
    6: "replaying the event log gives what the tables say",
    7: "stored bytes are what their digest says",
}


@dataclass(frozen=True, slots=True)
class Finding:
    run: str
    invariant: int
    problem: str


@dataclass(slots=True)
class Report:
    """What was checked and what was wrong."""

    runs: int = 0
    versions: int = 0
    receipts: int = 0
    aggregates_repeated: int = 0
    aggregates_not_kept: int = 0  # their updates are past retention
    orphan_blobs: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not self.findings

    def lines(self) -> list[str]:
        """For a person."""
        checked = (
            f"{self.runs} runs, {self.versions} versions, {self.receipts} receipts; {self.aggregates_repeated} aggregates "
            f"repeated bit for bit, {self.aggregates_not_kept} not (updates past retention); {self.orphan_blobs} orphan blobs"
        )
        problems = [
            f"run {f.run}, invariant {f.invariant} ({INVARIANTS[f.invariant]}): {f.problem}" for f in self.findings
        ]
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
            "findings": [{"run": f.run, "invariant": f.invariant, "problem": f.problem} for f in self.findings],
        }


async def audit(store: Store, blobs: Blobs, scratch: Path) -> Report:
    """Checks every run. Reads much: each kept update once or twice. Nothing may write meanwhile."""
    report = Report()
    for record in await store.runs():
        report.runs += 1
        versions = await store.versions(record.id)
        report.versions += len(versions)
        _check_chain(report, record, versions)
        rounds = await _all_rounds(store, record.id)
        receipts = {r.round: list(await store.receipts(record.id, r.round)) for r in rounds}
        report.receipts += sum(len(found) for found in receipts.values())
        _check_counts(report, record, versions, rounds, receipts)
        await _check_replay(report, store, record, versions, rounds, receipts)
        for version in versions:
            await _check_blob(report, record.id, blobs, version.digest, f"model version {version.version}")
        for version in versions[1:]:
            await _check_aggregate(report, record, blobs, scratch, versions[version.version - 1], version)
    named = await kept_blobs(store, 1_000_000)
    report.orphan_blobs = len(set(await blobs.digests()) - named)
    return report


async def _all_rounds(store: Store, run: RunId) -> list[RoundRecord]:
    found: list[RoundRecord] = []
    while page := await store.rounds(run, found[-1].round if found else None, PAGE):
        found += page
    return found[::-1]


def _check_chain(report: Report, record: RunRecord, versions: Sequence[VersionRecord]) -> None:
    parent = ""
    for number, version in enumerate(versions):
        if version.version != number:
            report.findings.append(Finding(record.id, 3, f"version {number} is missing"))
        if version.parent_sha256 != parent:
            report.findings.append(
                Finding(record.id, 3, f"version {version.version} does not name its parent's record")
            )
        if version.spec_sha256 != record.spec_sha256:
            report.findings.append(Finding(record.id, 3, f"version {version.version} was made under another spec"))
        parent = version.record_sha256


def _check_counts(
    report: Report,
    record: RunRecord,
    versions: Sequence[VersionRecord],
    rounds: list[RoundRecord],
    receipts: Mapping[RoundNumber, Sequence[ReceiptRecord]],
) -> None:
    made = Counter(version.round for version in versions[1:])
    for row in rounds:
        acknowledged = tuple((r.receipt.client, r.receipt.digest, r.receipt.examples) for r in receipts[row.round])
        if made[row.round] > 1:
            report.findings.append(Finding(record.id, 2, f"round {row.round} made {made[row.round]} versions"))
        if row.outcome is RoundOutcome.CLOSED:
            version = next((v for v in versions if v.version == row.version), None)
            if version is None or version.round != row.round:
                report.findings.append(Finding(record.id, 1, f"round {row.round} is closed, its version is not there"))
            elif {u[:2] for u in version.updates} != {a[:2] for a in acknowledged}:
                lost = {a[0] for a in acknowledged} ^ {u[0] for u in version.updates} or "other digests"
                report.findings.append(
                    Finding(record.id, 1, f"round {row.round}: receipts and aggregate differ: {lost}")
                )
            elif version.updates != acknowledged:
                report.findings.append(Finding(record.id, 4, f"round {row.round}: example counts differ"))
        elif made[row.round]:
            report.findings.append(Finding(record.id, 2, f"round {row.round} is {row.outcome} and made a version"))
        elif row.outcome is RoundOutcome.ABANDONED and not row.reason:
            report.findings.append(Finding(record.id, 1, f"round {row.round} is abandoned without a reason"))
    known = {row.round for row in rounds}
    for version in versions[1:]:
        if version.round not in known:
            report.findings.append(Finding(record.id, 2, f"version {version.version} is of a round that never was"))


async def _check_replay(
    report: Report,
    store: Store,
    record: RunRecord,
    versions: Sequence[VersionRecord],
    rounds: list[RoundRecord],
    receipts: Mapping[RoundNumber, Sequence[ReceiptRecord]],
) -> None:
    state = first_state(record, parse_spec(record.spec_json, f"of run {record.id}"), versions[0])
    sequence = 0
    recorded: set[tuple[int, ev.Receipt]] = set()
    while page := await store.events(record.id, sequence, PAGE):
        for row in page:
            if row.sequence != sequence + 1:
                report.findings.append(Finding(record.id, 6, f"event {sequence + 1} is missing"))
            sequence = row.sequence
            try:
                state, effects = step(state, ev.event_from_facts(row.kind, dict(row.facts)))
            except (PluralError, KeyError, ValueError) as error:
                report.findings.append(Finding(record.id, 6, f"event {sequence} cannot be replayed: {error}"))
                return
            recorded |= {(e.round, e.receipt) for e in effects if isinstance(e, ev.RecordReceipt)}
    if (state.version, state.model_digest) != (versions[-1].version, versions[-1].digest):
        report.findings.append(Finding(record.id, 6, f"the log leads to version {state.version}"))
    if state.round != len(rounds):
        report.findings.append(Finding(record.id, 6, f"the log leads to round {state.round}, {len(rounds)} are stored"))
    stored = {(row.round, row.receipt) for found in receipts.values() for row in found}
    if stored != recorded:
        report.findings.append(Finding(record.id, 6, f"{len(stored ^ recorded)} receipts differ from the log's"))


async def _check_blob(report: Report, run: RunId, blobs: Blobs, digest: Digest, what: str) -> None:
    try:
        verify(await blobs.path(digest), digest)
    except (PluralError, OSError) as error:
        report.findings.append(Finding(run, 7, f"{what}: {error}"))


async def _check_aggregate(
    report: Report, record: RunRecord, blobs: Blobs, scratch: Path, base: VersionRecord, version: VersionRecord
) -> None:
    spec = parse_spec(record.spec_json, f"of run {record.id}")
    try:
        updates = [StoredWeights(await blobs.path(digest), digest) for _, digest, _ in version.updates]
        start = StoredWeights(await blobs.path(base.digest), base.digest)
    except NotFound:
        report.aggregates_not_kept += 1
        return
    weights = weights_of([ev.Receipt(*update) for update in version.updates], spec.aggregation)
    out = scratch / f"audit-{version.version}"
    try:
        optimizer = gradient_step(spec.aggregation.server_learning_rate)
        manifest = average(start, updates, weights, layout_for(spec), weighted_mean, optimizer, out)
    except (PluralError, OSError) as error:
        report.findings.append(Finding(record.id, 7, f"an update of round {version.round}: {error}"))
        return
    finally:
        out.unlink(missing_ok=True)
    report.aggregates_repeated += 1
    if manifest.digest != version.digest:
        report.findings.append(Finding(record.id, 5, f"version {version.version} aggregates to {manifest.digest}"))
