"""The conditions at the end: a clean verification, every receipt on record, and the bits of an undisturbed run."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nemesis.federation import RUN, Federation
from nemesis.logs import Facts, facts_in

from pluralllm.common.process.configuration import load_config
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.words.ids import RoundNumber, RunId
from pluralllm.server.commands.verify import verify_state
from pluralllm.server.process.config import ServerConfig
from pluralllm.server.storage.by_url import blobs_of, opened_alone
from pluralllm.server.storage.sql_membership import SqlMembership
from pluralllm.server.storage.state_directory import StateDirectory
from pluralllm.server.storage.store import RoundOutcome, RoundRecord

# Log events of a coordinator that met an unexpected error.
NEVER_SAID = ("run.broken", "rpc.failed", "task.broken")


@dataclass(frozen=True, slots=True)
class Record:
    """The content of the stores at the end."""

    versions: tuple[VersionRecord, ...]
    rounds: dict[int, RoundRecord]
    receipts: dict[tuple[int, str], str]  # digests by round and client
    findings: tuple[str, ...]  # the findings of `verify`
    aggregates_repeated: int = 0
    ended: str = field(default="")

    @property
    def updates(self) -> int:
        return len(self.receipts)

    @property
    def abandoned(self) -> int:
        return sum(row.outcome is RoundOutcome.ABANDONED for row in self.rounds.values())


def read_record(config: Path) -> Record:
    """Audits and reads the stores; the coordinators must have ended."""
    return asyncio.run(_read(load_config(ServerConfig, config, {})))


async def _read(config: ServerConfig) -> Record:
    run = RunId(RUN)
    with StateDirectory(config.state_dir) as state:
        async with opened_alone(config, state) as store:
            report = await verify_state(store, SqlMembership(store), blobs_of(config, state), state.scratch)
            rounds = {int(row.round): row for row in await store.rounds(run, None, 1000)}
            receipts = {
                (number, str(row.receipt.client)): str(row.receipt.digest)
                for number in rounds
                for row in await store.receipts(run, RoundNumber(number))
            }
            versions = tuple(await store.versions(run))
    findings = tuple(f"verify: {line}" for line in report.lines()[1:-1])
    return Record(versions, rounds, receipts, findings, report.aggregates_repeated)


def problems(
    federation: Federation, record: Record, undisturbed: Record | None, *, may_differ: bool, may_end_early: bool
) -> Iterator[str]:
    """Yields everything that does not hold.

    `may_differ`: after one of the faults other updates may count, so only versions of the same updates are compared.
    """
    yield from record.findings
    yield from broken_promises(federation, record)
    for number, row in record.rounds.items():
        if row.outcome is RoundOutcome.ABANDONED and not row.reason:
            yield f"round {number} was abandoned without a reason"
    for each in federation.kept:
        yield from _unexpected(each.name, facts_in(each.process.log), each.process.log.read_text())
    ended = {facts["outcome"] for name in federation.clients for facts in _logged(federation, name, "run.over")}
    if ended != {"completed"} and not (may_end_early and ended == {"aborted"}):
        yield f"the clients were told that the run is {ended}"
    if undisturbed is not None:
        differing = private_differences if federation.is_private else differences
        yield from differing(record, undisturbed, may_differ=may_differ)


def _logged(federation: Federation, client: str, event: str) -> list[Facts]:
    return [facts for facts in facts_in(federation.clients[client].process.log) if facts["event"] == event]


def broken_promises(federation: Federation, record: Record) -> Iterator[str]:
    """Yields receipts that are not on record, or that do not count in the version of their round."""
    versions_by_round = {int(version.round): version for version in record.versions if version.version > 0}
    for client in federation.clients:
        committed_updates = [
            (facts["task"], facts["digest"]) for facts in _logged(federation, client, "update.committed")
        ]
        for task, count in Counter(task for task, _ in committed_updates).items():
            if count > 1:
                yield f"{task}: the client was asked for it again, after its receipt"
        for task, digest in committed_updates:
            number = int(task.split("/")[3])
            if record.receipts.get((number, client)) != digest:
                yield f"round {number}: the receipt of {client} is not on record"
            row = record.rounds.get(number)
            if row is None or (row.outcome is not RoundOutcome.CLOSED and not row.reason):
                yield f"round {number} of a receipt has neither a version nor a reason"
            if number in versions_by_round and (client, digest) not in {
                tuple(update[:2]) for update in versions_by_round[number].updates
            }:
                yield f"round {number}: the update of {client} does not count"


def _unexpected(name: str, logged: list[Facts], log: str) -> Iterator[str]:
    for facts in logged:
        if facts["event"] in NEVER_SAID and "exception" in facts:
            last = facts["exception"][-1] if isinstance(facts["exception"], list) else facts["exception"]
            yield f"{name} said {facts['event']}: {last}"[:600]
    if "Traceback (most recent call last)" in log:
        place = log.index("Traceback (most recent call last)")
        yield f"{name} wrote a stack trace: {log[place : place + 3000]}"


def differences(record: Record, undisturbed: Record, *, may_differ: bool) -> Iterator[str]:
    """Compares the versions in order, as long as they are made of the same updates: then their bits must be the same."""
    for key, digest in record.receipts.items():
        if undisturbed.receipts.get(key, digest) != digest:
            yield f"round {key[0]}: the update of {key[1]} is another one than undisturbed"
    yield from _differing_versions(record, undisturbed, _updates, _all_bits, may_differ=may_differ)


def private_differences(record: Record, undisturbed: Record, *, may_differ: bool) -> Iterator[str]:
    """Compares the versions of private rounds, as long as they are sums of the same members: then their bits must be the same.

    The masks differ in each run, and so do the digests of the updates, and the records that hold them.
    """
    yield from _differing_versions(record, undisturbed, _names, _model_bits, may_differ=may_differ)


def _updates(version: VersionRecord) -> object:
    return version.updates


def _names(version: VersionRecord) -> object:
    return [client for client, *_ in version.updates]


def _all_bits(version: VersionRecord) -> object:
    return version.digest, version.moments, version.record_sha256


def _model_bits(version: VersionRecord) -> object:
    return version.digest, version.moments


def _differing_versions(
    record: Record,
    undisturbed: Record,
    made_of: Callable[[VersionRecord], object],
    bits: Callable[[VersionRecord], object],
    *,
    may_differ: bool,
) -> Iterator[str]:
    for version, expected in zip(record.versions, undisturbed.versions, strict=False):
        if (version.round, made_of(version)) != (expected.round, made_of(expected)):
            if not may_differ:
                yield f"version {version.version} is made of other updates than undisturbed"
            return
        if bits(version) != bits(expected):
            yield f"version {version.version} has other bits than undisturbed, of the same updates"
            return
    if len(record.versions) != len(undisturbed.versions) and not may_differ:
        yield f"{len(record.versions)} versions, undisturbed {len(undisturbed.versions)}"
