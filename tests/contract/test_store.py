"""The contract of every store: in memory, over a real database file and over a real PostgreSQL."""

import asyncio
import contextlib
import hashlib
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection
from support.memory_store import MemoryStore, Tables
from support.real_stores import Postgres, free_port

from pluralllm.common.errors.tree import InvalidConfig, Overtaken, StorageFull, StoreFailed
from pluralllm.common.private_rounds.roster import RosterChange, RosterEntry
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.words.ids import ClientId, Digest, GroupName, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.noise import NoiseStatement
from pluralllm.common.words.not_reported import NotReported
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.process.fail_stop import FailStop
from pluralllm.server.rounds import events as ev
from pluralllm.server.storage import migrations, schema
from pluralllm.server.storage.membership import MembershipChange, NewAuditEntry, RosterRow
from pluralllm.server.storage.sql_engine import NEWEST_REVISION, new_engine
from pluralllm.server.storage.sql_membership import SqlMembership
from pluralllm.server.storage.sql_rows import evaluation_values
from pluralllm.server.storage.sql_store import SqlStore, open_store
from pluralllm.server.storage.store import (
    Change,
    Checkpoint,
    ClientRecord,
    EvaluationRecord,
    ReceiptRecord,
    RoundBlobs,
    RoundMessage,
    RoundOutcome,
    RoundRecord,
    RunBlobs,
    RunRecord,
    SettledRun,
    Store,
)

POSTGRESQL = pytest.param("postgresql", marks=pytest.mark.seconds)  # a real one has to start
Opener = Callable[[], Awaitable[Store]]
MOMENTS = (Digest("m"), Digest("v"))
R = RunId("r")
RUN = RunRecord(R, b"{}", Digest("s" * 64), 1.0)
FIRST = VersionRecord(R, ModelVersion(0), RoundNumber(0), Digest("d0"), RUN.spec_sha256, "", (), 1.0)
SECOND = replace(
    FIRST,
    version=ModelVersion(1),
    round=RoundNumber(1),
    digest=Digest("d1"),
    parent_sha256=FIRST.record_sha256,
    updates=((ClientId("ann"), Digest("u"), 5),),
)
ROUND = RoundRecord(
    R, RoundNumber(1), RoundOutcome.OPEN, "", ModelVersion(0), None, (ClientId("ann"), ClientId("ben")), 2.0, 2.0
)
RECEIPT = ReceiptRecord(R, RoundNumber(1), ev.Receipt(ClientId("ann"), Digest("u"), 5), 3.0)
MEMBER = ClientRecord(ClientId("ann"), GroupName("Ännchen"), GroupRole.HELD_OUT, 7, "0.1", 1.0, 1.0)


def url(folder: Path) -> str:
    return f"sqlite+aiosqlite:///{folder / 'test.sqlite3'}"


def new_database(kind: str, request: pytest.FixtureRequest, folder: Path) -> str:
    """Returns the URL of an empty database."""
    if kind == "sqlite":
        return url(folder)
    found: str = request.getfixturevalue("postgres").new_database()
    return found.replace("postgresql:", "postgresql+psycopg:")


@pytest.fixture(params=["sqlite", POSTGRESQL])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return new_database(request.param, request, tmp_path)


@pytest.fixture(params=["memory", "sqlite", POSTGRESQL])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Opens a store on the same tables each time."""
    if request.param == "memory":
        tables = Tables()

        async def in_memory() -> Store:
            return MemoryStore(tables)

        return in_memory
    database = new_database(request.param, request, tmp_path)
    return lambda: open_store(database)


@pytest.fixture
async def store(opener: Opener) -> AsyncIterator[Store]:
    opened = await opener()
    await opened.create_run(RUN, FIRST)
    yield opened
    await opened.close()


@pytest.fixture
async def sql_store(database: str) -> AsyncIterator[SqlStore]:
    """A store for tests of the properties that only a database has."""
    opened = await open_store(database)
    await opened.create_run(RUN, FIRST)
    yield opened
    await opened.close()


@pytest.fixture
async def file_store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    """A store for tests of SQLite alone."""
    opened = await open_store(url(tmp_path))
    await opened.create_run(RUN, FIRST)
    yield opened
    await opened.close()


def change(sequence: int, **rows: object) -> Change:
    return replace(Change(R, sequence, ev.ClockTicked(float(sequence))), **rows)  # type: ignore[arg-type]


def score(version: int, client: str = "ann", value: float = 0.5) -> EvaluationRecord:
    found = ev.Score(ClientId(client), GroupName(client), GroupRole.TRAIN, ModelVersion(version), value, 0.1, None, 3)
    return EvaluationRecord(R, found, 4.0)


def kept_score(version: int, client: str, reason: NotReported) -> EvaluationRecord:
    """Returns the evaluation of a client that does not report its scores."""
    name, group, number = ClientId(client), GroupName(client), ModelVersion(version)
    return EvaluationRecord(R, ev.Score(name, group, GroupRole.TRAIN, number, None, None, None, 0, reason), 4.0)


async def test_a_run_and_its_first_version_are_there_together(store: Store) -> None:
    assert await store.runs() == [RUN]
    assert await store.versions(R) == [FIRST]


async def test_a_run_is_created_once(store: Store) -> None:
    with pytest.raises(StoreFailed):
        await store.create_run(RUN, FIRST)


async def test_a_change_writes_all_of_its_rows(store: Store) -> None:
    await store.apply([change(1, rounds=(ROUND,), receipts=(RECEIPT,), evaluations=(score(0),))])
    await store.apply([change(2, rounds=(replace(ROUND, outcome=RoundOutcome.CLOSED),), versions=(SECOND,))])
    assert (await store.round(R, RoundNumber(1))) == replace(ROUND, outcome=RoundOutcome.CLOSED)
    assert await store.receipts(R, RoundNumber(1)) == [RECEIPT]
    assert await store.receipt_counts(R, [RoundNumber(1), RoundNumber(2)]) == {1: 1}
    assert await store.receipt_counts(R, []) == await store.receipt_counts(R, [RoundNumber(2)]) == {}
    assert await store.receipt_counts(RunId("other"), [RoundNumber(1)]) == {}
    assert await store.receipt(R, RoundNumber(1), ClientId("ann")) == RECEIPT
    assert await store.receipt(R, RoundNumber(1), ClientId("ben")) is None
    assert await store.version(R, ModelVersion(1)) == SECOND
    assert [await store.versions(R, ModelVersion(first)) for first in (0, 1, 2)] == [[FIRST, SECOND], [SECOND], []]
    assert await store.latest_evaluations(R, 2) == [score(0)]
    assert await store.model_digests(R) == [FIRST.digest, SECOND.digest]


async def test_the_blobs_that_rows_name_are_those_of_the_newest_rounds_and_of_all_versions(store: Store) -> None:
    first, second = (replace(RECEIPT, receipt=replace(RECEIPT.receipt, digest=Digest(name))) for name in ("u1", "u2"))
    closed = replace(ROUND, outcome=RoundOutcome.CLOSED, version=ModelVersion(1), rollouts="texts")
    version = replace(SECOND, moments=MOMENTS, transcript=Digest("signed"))
    await store.apply([change(1, rounds=(closed,), receipts=(first,), versions=(version,))])
    later = replace(closed, round=RoundNumber(2), base_version=ModelVersion(1), version=ModelVersion(2), rollouts="")
    third = replace(SECOND, version=ModelVersion(2), round=RoundNumber(2), digest=Digest("d2"), moments=(Digest("w"),))
    await store.apply(
        [change(2, rounds=(later,), receipts=(replace(second, round=RoundNumber(2)),), versions=(third,))]
    )
    opened = replace(ROUND, round=RoundNumber(3), base_version=ModelVersion(2))
    await store.apply([change(3, rounds=(opened,), receipts=(replace(first, round=RoundNumber(3)),))])
    oldest = RoundBlobs(False, frozenset(map(Digest, ("u1", "texts", "signed"))), frozenset())
    made = RoundBlobs(False, frozenset({Digest("u2")}), frozenset(MOMENTS))
    under_way = RoundBlobs(True, frozenset({Digest("u1")}), frozenset())
    expected = RunBlobs(
        R, frozenset(map(Digest, ("d0", "d1", "d2"))), frozenset({Digest("w")}), (under_way, made, oldest)
    )
    assert await store.named_blobs(1_000_000) == [expected]
    assert await store.named_blobs(2) == [replace(expected, rounds=(under_way, made))]


async def test_moments_weights_scales_distances_and_norms_come_back_as_they_were_written(store: Store) -> None:
    second = replace(SECOND, moments=(Digest("m"), Digest("v")), weights=(1 / 3, 0.1 + 0.2), scales=(1.0, 1 / 7))
    receipt = replace(RECEIPT, receipt=replace(RECEIPT.receipt, distance=0.1 + 0.2, norm=0.7 + 0.1))
    await store.apply([change(1, receipts=(receipt,), versions=(second,))])
    assert await store.version(R, ModelVersion(1)) == second
    assert await store.receipts(R, RoundNumber(1)) == [receipt]


def message(
    client: str, step: ev.RoundStep = ev.RoundStep.KEYS, number: int = 1, body: bytes = b"\x00k"
) -> RoundMessage:
    return RoundMessage(R, RoundNumber(number), step, ClientId(client), Digest(hashlib.sha256(body).hexdigest()), body)


async def test_messages_of_a_private_round_stay_until_the_round_ends(store: Store) -> None:
    ann, ben, dealt = message("ann"), message("ben"), message("ann", ev.RoundStep.SHARES)
    await store.apply([change(1, messages=(ben,)), change(2, messages=(dealt,)), change(3, messages=(ann,))])
    assert await store.round_messages(R, RoundNumber(1), ev.RoundStep.KEYS) == [ann, ben]
    assert await store.round_messages(R, RoundNumber(1)) == await store.round_messages(R) == [ann, ben, dealt]
    assert await store.round_messages(R, RoundNumber(2)) == []
    again, other = message("ben", body=b"other keys"), message("ann", number=2)
    await store.apply([change(4, messages=(again,)), change(5, messages=(other,))])
    assert await store.round_messages(R, step=ev.RoundStep.KEYS) == [ann, again, other]
    await store.apply([change(6, messages=(message("cat"),)), change(7, ended=(RoundNumber(1),))])
    assert await store.round_messages(R) == [other]


async def test_of_two_messages_of_one_member_in_one_transaction_the_last_one_stands(store: Store) -> None:
    again = message("ann", body=b"other keys")
    await store.apply([change(1, messages=(message("ann"),)), change(2, messages=(again,))])
    assert await store.round_messages(R) == [again]
    await store.apply([change(3, messages=(message("ben"),)), change(4, ended=(RoundNumber(1),))])
    await store.apply([change(5, ended=(RoundNumber(1),)), change(6, messages=(again,))])
    assert await store.round_messages(R) == [again]


async def test_a_version_of_a_private_round_names_its_transcript_and_its_hash_does_too(store: Store) -> None:
    private = replace(SECOND, transcript="f" * 64)
    await store.apply([change(1, versions=(private,))])
    assert await store.version(R, ModelVersion(1)) == private
    facts = [1, 1, "d1", private.spec_sha256, private.parent_sha256, [["ann", "u", 5]], ["private", "f" * 64]]
    expected = hashlib.sha256(json.dumps(facts, separators=(",", ":")).encode()).hexdigest()
    assert private.record_sha256 == expected != SECOND.record_sha256


def test_moments_and_weights_are_in_a_versions_hash_where_there_are_any() -> None:
    records = [
        SECOND,
        replace(SECOND, moments=(Digest("m"),)),
        replace(SECOND, weights=(1.0,)),
        replace(SECOND, moments=(Digest("m"),), weights=(1.0,)),
    ]
    assert len({record.record_sha256 for record in records}) == len(records)
    facts = '[1,1,"d1","' + "s" * 64 + '","' + FIRST.record_sha256 + '",[["ann","u",5]]]'
    # Without moments and weights the hash is the one of earlier releases.
    assert SECOND.record_sha256 == hashlib.sha256(facts.encode()).hexdigest()


async def test_rows_of_an_older_release_are_read_as_without_moments_weights_and_distances(database: str) -> None:
    store = await open_store(database)
    await store.create_run(RUN, FIRST)
    await store.apply([change(1, receipts=(RECEIPT,), versions=(SECOND,))])
    async with store.writing() as connection:
        added = [("receipts", "distance"), ("versions", "moments"), ("versions", "weights"), ("rounds", "rollouts")]
        added += [("evaluations", "not_reported"), ("members", "runs"), ("invites", "runs")]
        added.append(("certificates", "predecessor"))
        added += [("receipts", "norm"), ("versions", "scales")]
        added += [("members", "max_examples"), ("invites", "max_examples"), ("evaluations", "context_gain")]
        added += [("clients", "noise"), ("versions", "transcript"), ("rounds", "tail")]
        for table, column in added:
            await connection.execute(sa.text(f"ALTER TABLE {table} DROP COLUMN {column}"))
        for table in ("leadership", "checkpoints", "round_messages", "roster"):
            await connection.execute(sa.text(f"DROP TABLE {table}"))
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '0002'"))
    await store.close()
    again = await open_store(database)
    assert await again.versions(R) == [FIRST, SECOND]
    assert await again.receipts(R, RoundNumber(1)) == [RECEIPT]
    await again.close()


@pytest.mark.parametrize("reason", NotReported)
async def test_an_evaluation_without_scores_comes_back_with_its_reason(store: Store, reason: NotReported) -> None:
    kept, reported = kept_score(0, "ann", reason), score(0, "ben", 0.0)
    await store.apply([change(1, evaluations=(kept,))])
    await store.apply([change(2, evaluations=(reported,))])
    assert await store.latest_evaluations(R, 1) == [kept, reported]
    assert [row for _, row in await store.evaluations(R, 0, 10)] == [kept, reported]
    assert await store.alignment_scores(R, ModelVersion(0)) == [("ann", None), ("ben", 0.0)]
    await store.apply([change(3, evaluations=(score(0, "ann", 0.4),))])  # the newer evaluation of a client stands
    assert await store.latest_evaluations(R, 1) == [score(0, "ann", 0.4), reported]
    assert await store.alignment_scores(R, ModelVersion(0)) == [("ann", 0.4), ("ben", 0.0)]
    assert await store.alignment_scores(R, ModelVersion(1)) == []


@contextlib.asynccontextmanager
async def of_revision(database: str, revision: str) -> AsyncIterator[AsyncConnection]:
    """Brings an empty database to the schema of an older release. Yields a connection for that release's rows."""

    def upgrade(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(migrations.__file__).parent))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    engine = new_engine(sa.make_url(database))
    async with engine.begin() as connection:
        await connection.run_sync(upgrade)
        yield connection
    await engine.dispose()


async def test_an_evaluation_comes_back_with_its_context_gain(store: Store) -> None:
    plain = score(0)
    gained = replace(plain, score=replace(plain.score, context_gain=0.02))
    await store.apply([change(1, evaluations=(gained,))])
    assert await store.latest_evaluations(R, 1) == [gained] != [plain]


async def test_evaluations_of_an_older_release_keep_scores_and_cursors_and_later_ones_may_have_no_scores(
    database: str,
) -> None:
    async with of_revision(database, "0005") as connection:
        older = sa.text(
            "INSERT INTO evaluations (run, version, client, group_name, role, alignment_score, alignment_score_base2, "
            "questions, created_s) VALUES ('r', :version, :client, :group_name, 'train', 0.5, 0.1, 3, 4.0)"
        )
        for version, client in ((0, "ann"), (0, "ben"), (1, "ann"), (1, "ben")):
            await connection.execute(older, {"version": version, "client": client, "group_name": client})
        await connection.execute(sa.text("DELETE FROM evaluations WHERE version = 0 AND client = 'ann'"))
    store = await open_store(database)
    await store.create_run(RUN, FIRST)
    rows = await store.evaluations(R, 0, 10)
    assert rows == [(2, score(0, "ben")), (3, score(1)), (4, score(1, "ben"))]
    kept = kept_score(1, "ben", NotReported.BUDGET_SPENT)
    await store.apply([change(1, evaluations=(kept,))])
    assert await store.evaluations(R, 4, 10) == [(5, kept)]  # a cursor is never used twice
    with pytest.raises(StoreFailed, match="another writer was there first"):
        async with store.writing() as connection:
            await connection.execute(sa.insert(schema.evaluations).values(evaluation_values(kept)))
    await store.close()


async def test_members_of_an_older_release_have_the_default_limit_and_observers_may_still_read_every_run(
    database: str,
) -> None:
    async with of_revision(database, "0006") as connection:
        for name, role in (("ann", "client"), ("eve", "observer"), ("root", "admin")):
            member = sa.text("INSERT INTO members VALUES (:name, :role, '', 'train', TRUE, 1.0, NULL)")
            await connection.execute(member, {"name": name, "role": role})
            invite = sa.text(
                "INSERT INTO invites VALUES (:token, :name, :role, '', 'train', FALSE, 1.0, 9.0, FALSE, 'k')"
            )
            await connection.execute(invite, {"token": name, "name": name, "role": role})
        certificate = sa.text("INSERT INTO certificates VALUES ('1f', 'eve', 'k', 9.0, 1.0, NULL, :chain)")
        await connection.execute(certificate, {"chain": b"pem"})
    store = await open_store(database)
    everyone = await SqlMembership(store).everyone()
    expected = {"ann": (), "eve": ("*",), "root": ()}
    assert {member.name: member.runs for member in everyone.members} == expected
    assert {invite.name: invite.runs for invite in everyone.invites} == expected
    assert {member.max_examples for member in everyone.members} == {10_000}
    assert {invite.max_examples for invite in everyone.invites} == {10_000}
    assert [issued.predecessor for issued in everyone.certificates] == [""]
    await store.close()


async def test_certificates_of_an_older_release_become_one_line_so_that_their_owner_can_void_what_a_thief_renewed(
    database: str,
) -> None:
    async with of_revision(database, "0007") as connection:
        member = sa.text("INSERT INTO members VALUES (:name, 'client', '', 'train', TRUE, :created, NULL, 10)")
        for name, created_s in (("ann", 2.0), ("ben", 1.0)):
            await connection.execute(member, {"name": name, "created": created_s})
        row = sa.text("INSERT INTO certificates VALUES (:serial, :member, :serial, 9.0, :issued, :revoked, :chain)")
        rows = [("z0", "ann", 1.0, None), ("z1", "ann", 2.0, None), ("a9", "ann", 2.5, 2.6), ("b9", "ben", 3.5, None)]
        rows += [("a2", "ann", 3.0, None), ("a3", "ann", 4.0, None), ("a4", "ann", 5.0, None), ("a5", "ann", 6.0, None)]
        for serial, name, issued_s, revoked_s in rows:
            values = {"serial": serial, "member": name, "issued": issued_s, "revoked": revoked_s, "chain": b"pem"}
            await connection.execute(row, values)
    store = await open_store(database)
    certificates = {issued.serial: issued for issued in (await SqlMembership(store).everyone()).certificates}
    line = {"a2": "z1", "a3": "a2", "a4": "a3", "a5": "a4"}
    assert {serial: issued.predecessor for serial, issued in certificates.items() if issued.predecessor} == line
    assert {serial: issued.revoked_s for serial, issued in certificates.items() if issued.revoked_s} == {
        "z0": 2.0,
        "a9": 2.6,
    }
    await store.close()


async def test_the_roster_grows_by_the_next_entry_only(database: str) -> None:
    entry, audited = (
        RosterEntry(1, "ann", "S. Korea", "a" * 64, RosterChange.ADDED),
        NewAuditEntry(1.0, "", "", "A", "o", ""),
    )
    first = RosterRow(entry, b"\0key", entry.head_after(b""))
    gone = replace(entry, sequence=2, change=RosterChange.REMOVED)
    store = await open_store(database)
    membership = SqlMembership(store)
    assert await membership.roster_rows(0, 9) == []
    for row in (first, second := RosterRow(gone, b"\0key", gone.head_after(first.head))):
        await membership.change_membership(MembershipChange(audited, roster=(row,)))
    with pytest.raises(StoreFailed):
        await membership.change_membership(MembershipChange(audited, roster=(second,)))
    assert await membership.roster_rows(0, 9) == [first, second]
    assert [await membership.roster_rows(after, 1) for after in (0, 1, 2)] == [[first], [second], []]
    assert (await membership.audit_head())[0] == 2  # the refused change has no entry
    await store.close()


async def test_a_change_that_fails_writes_nothing(store: Store) -> None:
    await store.apply([change(1, receipts=(RECEIPT,))])
    with pytest.raises(StoreFailed):
        await store.apply([change(2, rounds=(ROUND,), receipts=(RECEIPT,))])
    assert await store.round(R, RoundNumber(1)) is None
    assert [event.sequence for event in await store.events(R, 0, 10)] == [1]


async def test_a_sequence_is_taken_once(store: Store) -> None:
    await store.apply([change(1)])
    with pytest.raises(StoreFailed, match="another writer was there first"):
        await store.apply([change(1, rounds=(ROUND,))])
    assert await store.round(R, RoundNumber(1)) is None


async def test_changes_of_several_runs_are_written_together_or_not_at_all(store: Store) -> None:
    other = RunId("other")
    await store.create_run(replace(RUN, id=other), replace(FIRST, run=other))
    with pytest.raises(StoreFailed):
        await store.apply([change(1, rounds=(ROUND,)), replace(change(1), run=other), change(1)])
    assert (await store.events(R, 0, 10), await store.events(other, 0, 10)) == ([], [])
    assert await store.round(R, RoundNumber(1)) is None
    await store.apply([change(1), replace(change(1), run=other), change(2)])
    assert [row.sequence for row in await store.events(R, 0, 10)] == [1, 2]
    assert [row.sequence for row in await store.events(other, 0, 10)] == [1]


async def test_of_changes_in_one_transaction_the_last_one_stands(store: Store) -> None:
    ann, ben, cem = (
        replace(RECEIPT, receipt=replace(RECEIPT.receipt, client=ClientId(c))) for c in ("ann", "ben", "cem")
    )
    closed = replace(ROUND, outcome=RoundOutcome.CLOSED, version=ModelVersion(1))
    await store.apply(
        [change(1, receipts=(ann, cem), rounds=(ROUND,), evaluations=(score(0, "ann", 0.1), score(0, "ben", 0.5)))]
    )
    await store.apply(
        [
            change(
                2,
                receipts=(ben,),
                rounds=(replace(ROUND, cohort=(ClientId("ann"),)),),
                evaluations=(score(0, "ann", 0.2),),
            ),
            change(3, withdrawn=((RoundNumber(1), ClientId("ben")), (RoundNumber(1), ClientId("cem")))),
            change(4, versions=(SECOND,), rounds=(closed,), evaluations=(score(0, "dan", 0.4), score(0, "ann", 0.3))),
        ]
    )
    assert await store.receipts(R, RoundNumber(1)) == [ann]
    assert await store.round(R, RoundNumber(1)) == closed
    assert await store.versions(R) == [FIRST, SECOND]
    standing = [(row.score.client, row.score.alignment_score) for _, row in await store.evaluations(R, 0, 10)]
    assert standing == [("ben", 0.5), ("dan", 0.4), ("ann", 0.3)]  # in the order in which they came in


async def test_a_run_has_its_newest_checkpoint(store: Store) -> None:
    first, second = (Checkpoint(R, number, 1, '{"a": "ä"}', Digest("c" * 64)) for number in (1, 3))
    assert await store.checkpoint(R) is None
    await store.apply([change(1, checkpoint=first), change(2)])
    assert await store.checkpoint(R) == first
    await store.apply([change(3, checkpoint=replace(second, format=7)), change(4, checkpoint=second)])
    await store.apply([change(5)])
    assert await store.checkpoint(R) == second
    for own in (replace(second, sequence=5, format=8), replace(second, sequence=5, format=9)):
        await store.save_checkpoint(own)
        assert await store.checkpoint(R) == own


def last_seen(run: RunId, sequence: int) -> Checkpoint:
    return Checkpoint(run, sequence, 1, '{"a": "ä"}', Digest("c" * 64))


async def test_a_run_is_settled_as_long_as_its_checkpoint_has_seen_the_whole_log(store: Store) -> None:
    unknown = RunId("unknown")
    assert await store.settled_runs([R, unknown]) == []
    await store.apply([change(1)])
    assert await store.settled_runs([R]) == []  # it has no checkpoint
    await store.apply([change(2, checkpoint=last_seen(R, 2))])
    assert await store.settled_runs([R]) == [SettledRun(last_seen(R, 2), FIRST, FIRST)]
    third = replace(SECOND, version=ModelVersion(2), digest=Digest("d2"), parent_sha256=SECOND.record_sha256)
    await store.apply([change(3, versions=(SECOND, third))])
    assert await store.settled_runs([R]) == []  # an event is later
    await store.apply([change(4, checkpoint=last_seen(R, 4))])
    assert await store.settled_runs([unknown, R]) == [SettledRun(last_seen(R, 4), FIRST, third)]
    assert await store.settled_runs([]) == await store.settled_runs([unknown]) == []
    await store.apply([change(5, checkpoint=last_seen(R, 6))])
    assert await store.settled_runs([R]) == []  # the log ends before it


async def test_twenty_settled_runs_take_as_many_queries_as_one(sql_store: SqlStore) -> None:
    runs = [RunId(f"run-{number}") for number in range(20)]
    for run in runs:
        await sql_store.create_run(replace(RUN, id=run), replace(FIRST, run=run))
    await sql_store.apply([replace(change(1, checkpoint=last_seen(run, 1)), run=run) for run in runs])
    counts = []
    for asked in (runs[:1], runs):
        with counted_queries() as queries:
            found = await sql_store.settled_runs(asked)
        assert sorted(rows.checkpoint.run for rows in found) == sorted(asked)
        assert all(rows.first == rows.newest == replace(FIRST, run=rows.checkpoint.run) for rows in found)
        counts.append(len(queries))
    assert counts[0] == counts[1] > 0


@contextlib.contextmanager
def counted_queries() -> Iterator[list[str]]:
    """Collects the statements that any database gets within the block."""
    seen: list[str] = []

    def note(_: object, __: object, statement: str, *___: object) -> None:
        seen.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)


async def test_events_come_in_order_after_a_cursor(store: Store) -> None:
    for sequence in range(1, 6):
        await store.apply([change(sequence)])
    assert [event.sequence for event in await store.events(R, 2, 2)] == [3, 4]
    first = (await store.events(R, 0, 1))[0]
    assert ev.event_from_facts(first.kind, dict(first.facts)) == ev.ClockTicked(1.0)


async def test_rounds_come_newest_first_in_pages(store: Store) -> None:
    for number in range(1, 6):
        await store.apply([change(number, rounds=(replace(ROUND, round=RoundNumber(number)),))])
    assert [row.round for row in await store.rounds(R, None, 2)] == [5, 4]
    assert [row.round for row in await store.rounds(R, 4, 10)] == [3, 2, 1]


async def test_the_newest_evaluation_of_a_client_stands(store: Store) -> None:
    await store.apply([change(1, evaluations=(score(0, value=0.1),))])
    await store.apply([change(2, evaluations=(score(0, value=0.2),))])
    await store.apply([change(3, evaluations=(score(1),))])
    await store.apply([change(4, evaluations=(score(2), score(2, "ben")))])
    latest = await store.latest_evaluations(R, 2)
    assert [(row.score.version, row.score.client) for row in latest] == [(1, "ann"), (2, "ann"), (2, "ben")]
    rows = await store.evaluations(R, 0, 10)
    assert [row.score.alignment_score for _, row in rows if row.score.version == 0] == [0.2]
    assert await store.evaluations(R, rows[-1][0], 10) == []


async def test_a_member_is_updated_and_keeps_its_first_day(store: Store) -> None:
    await store.save_client(MEMBER)
    noise = NoiseStatement(noised=True, epsilon=4.0, delta=1e-6, unit="respondent")
    await store.save_client(replace(MEMBER, role=GroupRole.TRAIN, created_s=9.0, last_seen_s=9.0, noise=noise))
    assert await store.clients() == [replace(MEMBER, role=GroupRole.TRAIN, last_seen_s=9.0, noise=noise)]
    await store.save_client(MEMBER)
    assert await store.clients() == [MEMBER]


async def test_the_times_of_many_members_are_updated_at_once_and_nothing_else_of_them(store: Store) -> None:
    ben = replace(MEMBER, client=ClientId("ben"))
    for member in (MEMBER, ben):
        await store.save_client(member)
    await store.save_last_seen({MEMBER.client: 77.0, ClientId("nobody"): 78.0})
    assert await store.clients() == sorted([replace(MEMBER, last_seen_s=77.0), ben], key=lambda row: row.client)


async def test_everything_is_there_after_reopening(opener: Opener, store: Store) -> None:
    await store.apply([change(1, rounds=(ROUND,), receipts=(RECEIPT,))])
    await store.close()
    again = await opener()
    assert await again.runs() == [RUN]
    assert await again.receipts(R, RoundNumber(1)) == [RECEIPT]
    await again.close()


async def test_changes_may_be_written_at_once(store: Store) -> None:
    await asyncio.gather(*(store.apply([change(sequence)]) for sequence in range(1, 21)))
    assert [event.sequence for event in await store.events(R, 0, 100)] == list(range(1, 21))


async def test_a_caller_that_goes_away_harms_neither_the_database_nor_the_next_one(store: Store) -> None:
    for yields in range(40):
        written = len(await store.events(R, 0, 100))
        going = asyncio.ensure_future(store.apply([change(written + 1)]))
        for _ in range(yields):
            await asyncio.sleep(0)
        going.cancel()
        await asyncio.wait([going])
        assert await store.runs() == [RUN]
    events = await store.events(R, 0, 100)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))


async def test_an_evaluation_that_stands_anew_is_seen_by_who_reads_on_from_a_cursor(store: Store) -> None:
    await store.apply([change(1, evaluations=(score(0, value=0.1),))])
    cursor = (await store.evaluations(R, 0, 10))[-1][0]
    await store.apply([change(2, evaluations=(score(0, value=0.2),))])
    assert [row.score.alignment_score for _, row in await store.evaluations(R, cursor, 10)] == [0.2]


async def test_a_full_database_says_so_writes_nothing_and_heals(file_store: SqlStore) -> None:
    async with file_store.writing() as connection:
        pages = (await connection.execute(sa.text("PRAGMA page_count"))).scalar()
        await connection.execute(sa.text(f"PRAGMA max_page_count = {pages}"))
    big = replace(ROUND, reason="x" * 100_000)
    with pytest.raises(StorageFull):
        await file_store.apply([change(1, rounds=(big,))])
    assert await file_store.events(R, 0, 10) == []
    async with file_store.writing() as connection:
        await connection.execute(sa.text("PRAGMA max_page_count = 1000000"))
    await file_store.apply([change(1, rounds=(big,))])
    assert await file_store.round(R, RoundNumber(1)) == big


async def test_another_failure_is_not_taken_for_a_full_disk_because_of_a_name_in_it(sql_store: SqlStore) -> None:
    async with sql_store.writing() as connection:
        await connection.execute(sa.text("DROP TABLE clients"))
    with pytest.raises(StoreFailed, match=r"no such table|does not exist"):
        await sql_store.save_client(replace(MEMBER, group=GroupName("works full time")))


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test.sqlite3").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreFailed, match="not a database"):
        await open_store(url(tmp_path))


async def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "test.sqlite3")) as connection:
        connection.execute("CREATE TABLE members (stranger TEXT)")  # the last table that the first migration makes
        connection.commit()
        before = list(connection.iterdump())
    with pytest.raises(StoreFailed, match="members already exists"):
        await open_store(url(tmp_path))
    with contextlib.closing(sqlite3.connect(tmp_path / "test.sqlite3")) as connection:
        assert list(connection.iterdump()) == before


async def test_the_migrations_lead_to_the_schema_in_the_code(sql_store: SqlStore) -> None:
    def differences(connection: Connection) -> object:
        return compare_metadata(MigrationContext.configure(connection), schema.metadata)

    async with sql_store.writing() as connection:
        assert await connection.run_sync(differences) == []


async def test_an_empty_database_gets_the_tables_and_rows_that_all_migrations_make(database: str) -> None:
    def facts(connection: Connection) -> dict[str, object]:
        inspector = sa.inspect(connection)
        tables: dict[str, object] = {}
        for table in inspector.get_table_names():
            columns = {
                one["name"]: (str(one["type"]), one["nullable"], one["default"]) for one in inspector.get_columns(table)
            }
            keys = inspector.get_pk_constraint(table)["constrained_columns"], inspector.get_unique_constraints(table)
            indexes = sorted(inspector.get_indexes(table), key=str)
            rows = connection.execute(sa.text(f"SELECT * FROM {table}")).mappings().all()
            tables[table] = columns, keys, indexes, [dict(row) for row in rows]
        return tables

    store = await open_store(database)
    async with store.writing() as connection:
        made = await connection.run_sync(facts)
        for table in made:
            await connection.execute(sa.text(f"DROP TABLE {table}"))
    await store.close()
    assert len(made) == len(schema.metadata.tables) + 1
    async with of_revision(database, NEWEST_REVISION) as connection:
        assert await connection.run_sync(facts) == made


async def test_a_database_of_this_release_is_opened_without_a_migration(
    database: str, sql_store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sql_store.writing() as connection:
        noted = (await connection.execute(sa.text("SELECT version_num FROM alembic_version"))).scalar()
    assert noted == NEWEST_REVISION == ScriptDirectory(str(Path(migrations.__file__).parent)).get_current_head()
    await sql_store.close()
    monkeypatch.setattr(command, "upgrade", None)
    await (await open_store(database)).close()


async def test_a_database_of_a_newer_release_is_refused(database: str, sql_store: SqlStore) -> None:
    async with sql_store.writing() as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    await sql_store.close()
    with pytest.raises(InvalidConfig, match="of another release"):
        await open_store(database)


async def test_a_database_that_two_releases_have_changed_is_refused(database: str, sql_store: SqlStore) -> None:
    async with sql_store.writing() as connection:
        await connection.execute(sa.text("INSERT INTO alembic_version VALUES ('9999')"))
    await sql_store.close()
    with pytest.raises(InvalidConfig, match="of another release"):
        await open_store(database)


async def test_the_database_is_durable_above_fast(file_store: SqlStore) -> None:
    async with file_store.writing() as connection:
        assert (await connection.execute(sa.text("PRAGMA journal_mode"))).scalar() == "delete"
        assert (await connection.execute(sa.text("PRAGMA synchronous"))).scalar() == 3


@pytest.mark.seconds
async def test_a_migration_that_fails_leaves_postgresql_as_it_was(postgres: Postgres) -> None:
    database = postgres.new_database()
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE members (stranger TEXT)")
        with pytest.raises(StoreFailed, match="already exists"):
            await open_store(database.replace("postgresql:", "postgresql+psycopg:"))
        assert connection.execute(tables).fetchall() == [("members",)]


async def test_who_is_overtaken_neither_writes_nor_reads_and_knows_that_it_is_over(database: str) -> None:
    stops = (FailStop(), FailStop())
    first, second = [await open_store(database, stop) for stop in stops]
    assert await first.take_over() == 1
    await first.create_run(RUN, FIRST)
    assert await second.take_over() == 2
    for refused in (first.apply([change(1)]), first.runs()):
        with pytest.raises(Overtaken):
            await refused
    assert isinstance(stops[0].why, Overtaken)
    await second.apply([change(1)])
    assert [event.sequence for event in await second.events(R, 0, 10)] == [1]
    assert stops[1].why is None
    for store in (first, second):
        await store.close()


async def test_a_process_whose_memory_lacks_an_event_of_the_database_ends(database: str) -> None:
    """The answer to a commit may be lost with its connection; to try its event again would then fail for ever."""
    stop = FailStop()
    store = await open_store(database, stop)
    await store.create_run(RUN, FIRST)
    await store.apply([change(1)])
    assert stop.why is None
    with pytest.raises(StoreFailed, match="another writer was there first"):
        await store.apply([change(1)])
    assert isinstance(stop.why, StoreFailed)
    await store.close()


async def test_a_database_that_cannot_be_reached_is_said_to_be() -> None:
    with pytest.raises(StoreFailed, match=r"127\.0\.0\.1"):
        await open_store(f"postgresql+psycopg://nobody:secret@127.0.0.1:{free_port()}/nothing")


async def test_a_read_does_not_wait_for_a_writer_of_another_process(tmp_path: Path) -> None:
    store = await open_store(url(tmp_path))
    await store.create_run(RUN, FIRST)
    with contextlib.closing(sqlite3.connect(tmp_path / "test.sqlite3")) as other:
        other.execute("BEGIN IMMEDIATE")
        assert await asyncio.wait_for(store.runs(), 2) == [RUN]
    await store.close()


async def test_a_transaction_that_reads_sees_what_was_written_before_it(store: Store) -> None:
    for sequence in range(1, 6):
        await store.apply([change(sequence)])
        assert len(await store.events(R, 0, 10)) == sequence


@pytest.mark.seconds
async def test_in_postgresql_a_read_goes_on_beside_a_write(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    store = await open_store(new_database("postgresql", request, tmp_path))
    await store.take_over()
    await store.create_run(RUN, FIRST)
    async with store.writing() as connection:
        await connection.execute(sa.text("UPDATE runs SET created_s = 99"))
        assert await asyncio.wait_for(store.runs(), 5) == [RUN], "what is not committed is not seen"
    assert (await store.runs())[0].created_s == 99
    await store.close()
