"""`verify` has no findings in a consistent history; it finds each hidden change and names its number."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from support.coordinator_harness import small_spec

from pluralllm.common.private_rounds.peer_keys import PeerKeyClaim, endorsed, public_der
from pluralllm.common.process.clock import FakeClock
from pluralllm.common.trust.certificates import new_key
from pluralllm.common.weights.layout import write_weights
from pluralllm.common.words.ids import ClientId, Digest, GroupName, RoundNumber, RunId
from pluralllm.common.words.not_reported import NotReported
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.aggregation.update_files import norm_of
from pluralllm.server.commands.verify import verify_state
from pluralllm.server.members.access import Principal
from pluralllm.server.members.audit_log import AuditLog
from pluralllm.server.members.roster_log import RosterLog
from pluralllm.server.process.fail_stop import FailStop
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Outcome, Phase, Run
from pluralllm.server.runs.assembly import Assembly
from pluralllm.server.runs.coordinator import Timing
from pluralllm.server.runs.recovery import recover
from pluralllm.server.runs.uploads import Uploads
from pluralllm.server.storage.blobs import LocalBlobs
from pluralllm.server.storage.membership import MembershipChange, NewAuditEntry
from pluralllm.server.storage.retention import collect, kept_blobs
from pluralllm.server.storage.sql_membership import SqlMembership
from pluralllm.server.storage.sql_store import SqlStore, open_store

pytestmark = pytest.mark.seconds

SPEC = small_spec(rounds=3, round={"min_clients": 2, "on_missed_quorum": "skip"})
FAIR_SPEC = small_spec(
    rounds=3,
    round={"min_clients": 2},
    aggregation={"optimizer": "fedyogi", "server_learning_rate": 0.01, "weighting": "adaptive", "fairness": 5.0},
)
LIMITED_SPEC = small_spec(format="pluralllm.run/2", rounds=3, round={"min_clients": 2})
SUMS_SPEC = small_spec(
    rounds=3,
    round={"min_clients": 2},
    predictor={"architecture": "kernel-sums/1", "features": 24, "group_rank": 3, "subspace_rounds": 1},
    aggregation={"weighting": "uniform"},
)
CLIENTS = (ClientId("ann"), ClientId("ben"))


class History:
    """A history of two clients, made by the coordinator; it skips a round with too few updates, or leaves the last one open."""

    def __init__(self, folder: Path, store: SqlStore) -> None:
        self.spec = SPEC
        self.clients: tuple[ClientId, ...] = CLIENTS
        self.examples: tuple[int, ...] = (10, 11)  # of the clients
        self.lengths: tuple[float, ...] = (1.0, 1.0)  # factors on the clients' updates
        self.folder = folder
        self.store = store
        self.blobs = LocalBlobs(folder / "blobs")

    def _parts(self, clock: FakeClock) -> Assembly:
        return Assembly(
            self.store,
            self.blobs,
            clock,
            FailStop(),
            Timing(keep_updates=100),
            scratch=self.folder / "scratch",
            uploads=Uploads(self.folder / "uploads"),
            poll_hold_s=1.0,
        )

    async def make(self, updates_of_rounds: Sequence[int], *, leave_open: bool = False) -> None:
        clock = FakeClock()
        parts = self._parts(clock)
        coordinator = parts.coordinator
        run = await coordinator.create_run("r", self.spec.canonical_json())
        await coordinator.dispatch(run, ev.RunStarted(clock.now_s()))
        for _ in range(2):  # the evaluation opens, and both clients are asked
            await coordinator.dispatch(run, ev.ClientsSeen(clock.now_s(), self.clients, ()))
        score = ev.Score(CLIENTS[0], GroupName("a"), GroupRole.TRAIN, run.state.version, 0.6, 0.3, None, 5)
        await coordinator.dispatch(run, ev.EvaluationArrived(clock.now_s(), score))
        name, group, reason = CLIENTS[1], GroupName("b"), NotReported.TOO_FEW_QUESTIONS
        kept = ev.Score(name, group, GroupRole.TRAIN, run.state.version, None, None, None, 0, reason)
        await coordinator.dispatch(run, ev.EvaluationArrived(clock.now_s(), kept))
        clock.advance(301)
        await coordinator.dispatch(run, ev.ClockTicked(clock.now_s()))
        for number, updates in enumerate(updates_of_rounds, 1):
            await coordinator.dispatch(run, ev.ClientsSeen(clock.now_s(), self.clients, ()))
            assert run.state.phase is Phase.COLLECTING
            for seed, client in enumerate(self.clients[:updates]):
                draft = self.folder / "draft"
                layout = run.update_format.layout
                values = np.random.default_rng(10 * number + seed).normal(0, 0.01, layout.values).astype(np.float32)
                values *= np.float32(self.lengths[seed])
                manifest = write_weights(draft, layout, [values])
                distance, norm = 0.2 + 0.1 * seed * number, norm_of(values)
                receipt = ev.Receipt(client, manifest.digest, self.examples[seed], distance, norm)
                arrived = ev.UpdateArrived(clock.now_s(), RoundNumber(number), run.state.version, receipt)
                async with parts.retention.storing():
                    await self.blobs.put(manifest.digest, draft)
                    await coordinator.dispatch(run, arrived)
            await coordinator.until_averaged(run)
            if leave_open and number == len(updates_of_rounds):
                break
            clock.advance(101)
            await coordinator.dispatch(run, ev.ClockTicked(clock.now_s()))
        await parts.tasks.stop()

    async def revoke(self, client: ClientId) -> None:
        """In the open round, by the coordinator, after a restart."""
        parts = self._parts(FakeClock())
        coordinator = parts.coordinator
        await coordinator.start()
        await coordinator.remove_client(client)
        await parts.tasks.stop()

    async def deliver_last(self) -> None:
        """The update that is missing in the open round, to a coordinator after a restart; it averages then."""
        parts = self._parts(FakeClock())
        coordinator = parts.coordinator
        await coordinator.start()
        run = parts.runs.get("r")
        draft = self.folder / "draft"
        manifest = write_weights(draft, run.layout, [np.zeros(run.layout.values, np.float32)])
        receipt = ev.Receipt(CLIENTS[1], manifest.digest, 11, 0.3)
        async with parts.retention.storing():
            await self.blobs.put(manifest.digest, draft)
            arrived = ev.UpdateArrived(parts.clock.now_s(), run.state.round, run.state.version, receipt)
            await coordinator.dispatch(run, arrived)
        await coordinator.until_averaged(run)
        await parts.tasks.stop()

    async def recovered(self) -> Run:
        """Returns the run that its event log gives."""
        run = await recover(self.store, (await self.store.runs())[0])
        return run.state

    async def execute(self, statement: str) -> None:
        async with self.store.writing() as connection:
            assert (await connection.execute(sa.text(statement))).rowcount > 0

    async def invariants(self) -> set[int]:
        report = await verify_state(self.store, SqlMembership(self.store), self.blobs, self.folder / "scratch")
        return {finding.invariant for finding in report.findings}

    async def blob(self, kind: str, number: int) -> Path:
        if kind == "version":
            return await self.blobs.path((await self.store.versions(RunId("r")))[number].digest)
        return await self.blobs.path((await self.store.receipts(RunId("r"), RoundNumber(1)))[number].receipt.digest)


@pytest.fixture
async def unwritten(tmp_path: Path) -> AsyncIterator[History]:
    for name in ("blobs", "scratch"):
        (tmp_path / name).mkdir()
    store = await open_store(f"sqlite+aiosqlite:///{tmp_path / 'test.sqlite3'}")
    yield History(tmp_path, store)
    await store.close()


@pytest.fixture
async def history(unwritten: History) -> History:
    """A history of three rounds whose third round is skipped."""
    await unwritten.make((2, 2, 1))
    return unwritten


async def test_an_untouched_history_is_clean_and_its_aggregates_repeat_bit_for_bit(history: History) -> None:
    report = await verify_state(history.store, SqlMembership(history.store), history.blobs, history.folder / "scratch")
    assert report.is_clean, report.lines()
    assert (report.runs, report.versions, report.receipts, report.aggregates_repeated) == (1, 3, 5, 2)
    assert report.lines()[-1] == "clean"


@pytest.mark.parametrize(
    ("statement", "invariant"),
    [
        ("DELETE FROM receipts WHERE round = 1 AND client = 'ann'", 2),
        ("DELETE FROM receipts WHERE round = 3", 6),
        ("UPDATE receipts SET digest = 'x' WHERE round = 2 AND client = 'ben'", 1),
        ("UPDATE versions SET updates = json_remove(updates, '$[0]') WHERE version = 2", 1),
        (
            "UPDATE versions SET updates = json_insert(updates, '$[#]', json(json_extract(updates, '$[0]'))) WHERE version = 1",
            2,
        ),
        ("UPDATE rounds SET reason = '' WHERE round = 3", 1),
        ("UPDATE rounds SET version = 7 WHERE round = 2", 1),
        ("UPDATE rounds SET outcome = 'abandoned', reason = 'x' WHERE round = 2", 2),
        ("UPDATE versions SET round = 9 WHERE version = 2", 2),
        ("DELETE FROM versions WHERE version = 1", 3),
        ("UPDATE versions SET parent_sha256 = 'x' WHERE version = 2", 3),
        ("UPDATE versions SET spec_sha256 = 'x' WHERE version = 0", 3),
        ("UPDATE receipts SET examples = 99 WHERE round = 1", 4),
        ("UPDATE versions SET updates = replace(updates, ', 10]', ', 11]') WHERE version = 1", 5),
        ("UPDATE runs SET spec_json = x'7b7d'", 3),
        ("UPDATE runs SET spec_json = CAST(replace(spec_json, 'tiny', 'huge') AS BLOB)", 3),
        ("DELETE FROM versions", 3),
        ("DELETE FROM rounds WHERE round = 3", 6),
        ("UPDATE rounds SET reason = 'another' WHERE round = 3", 6),
        ("UPDATE rounds SET cohort = '[]' WHERE round = 1", 6),
        ("UPDATE rounds SET base_version = 0 WHERE round = 2", 6),
        ("UPDATE evaluations SET alignment_score = 0.99", 6),
        ("UPDATE evaluations SET alignment_score = 0.5 WHERE client = 'ben'", 6),
        ("UPDATE evaluations SET not_reported = 'budget_spent' WHERE client = 'ben'", 6),
        ("UPDATE evaluations SET alignment_score = NULL WHERE client = 'ann'", 6),
        ("DELETE FROM events WHERE sequence = 3", 6),
        ("DELETE FROM events WHERE sequence = (SELECT max(sequence) FROM events)", 6),
        ("UPDATE events SET kind = 'Nonsense' WHERE sequence = 2", 6),
    ],
)
async def test_what_was_changed_in_the_database_is_found(history: History, statement: str, invariant: int) -> None:
    await history.execute(statement)
    assert invariant in await history.invariants()


@pytest.mark.parametrize(("kind", "number"), [("version", 0), ("version", 2), ("update", 0), ("update", 1)])
async def test_a_flipped_bit_in_a_blob_is_found(history: History, kind: str, number: int) -> None:
    path = await history.blob(kind, number)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert 7 in await history.invariants()


@pytest.fixture
async def fair(unwritten: History) -> History:
    """A history of three rounds of FedYogi with adaptive weights; the third is open and has one update."""
    unwritten.spec = FAIR_SPEC
    await unwritten.make((2, 2, 1), leave_open=True)
    return unwritten


async def test_moments_and_weights_are_on_record_and_repeat_bit_for_bit(fair: History) -> None:
    report = await verify_state(fair.store, SqlMembership(fair.store), fair.blobs, fair.folder / "scratch")
    assert report.is_clean, report.lines()
    assert (report.aggregates_repeated, report.orphan_blobs) == (2, 0)
    first, second, third = await fair.store.versions(RunId("r"))
    assert [len(version.moments) for version in (first, second, third)] == [0, 2, 2]
    assert second.weights[0] < second.weights[1]
    assert not list((fair.folder / "scratch").iterdir())


@pytest.mark.parametrize(
    ("statement", "invariant"),
    [
        ("UPDATE versions SET weights = '[0.5, 0.5]' WHERE version = 1", 5),
        ("UPDATE versions SET weights = '[0.5, 0.5]' WHERE version = 2", 6),
        ("UPDATE versions SET weights = '[1.0]' WHERE version = 1", 4),
        ("UPDATE versions SET weights = '[]' WHERE version = 1", 3),
        ("UPDATE versions SET moments = json_remove(moments, '$[0]') WHERE version = 1", 7),
        ("UPDATE versions SET moments = json_array(json_extract(moments, '$[1]'), 'x') WHERE version = 2", 5),
        ("UPDATE receipts SET distance = 0.1 WHERE round = 1", 6),
        ("UPDATE receipts SET distance = NULL WHERE round = 2 AND client = 'ben'", 6),
    ],
)
async def test_what_was_changed_of_moments_weights_and_distances_is_found(
    fair: History, statement: str, invariant: int
) -> None:
    await fair.execute(statement)
    assert invariant in await fair.invariants()


@pytest.fixture
async def limited(unwritten: History) -> History:
    """A history of two rounds in which ben claims most of the examples and sends updates ten times as long as ann's."""
    unwritten.spec, unwritten.examples, unwritten.lengths = LIMITED_SPEC, (10, 500), (1.0, 10.0)
    await unwritten.make((2, 2))
    return unwritten


async def test_limits_on_weights_and_lengths_are_on_record_and_repeat_bit_for_bit(limited: History) -> None:
    report = await verify_state(limited.store, SqlMembership(limited.store), limited.blobs, limited.folder / "scratch")
    assert report.is_clean, report.lines()
    assert report.aggregates_repeated == 2
    for version in (await limited.store.versions(RunId("r")))[1:]:
        assert version.weights == pytest.approx((1 / 6, 5 / 6))
        assert version.scales == pytest.approx((1.0, 0.3 * 3 / 5), rel=0.1)  # five thirds of an even share
    run = await recover(limited.store, (await limited.store.runs())[0])
    assert run.state.limits_members


@pytest.mark.parametrize(
    ("statement", "invariant"),
    [
        ("UPDATE versions SET scales = '[1.0, 0.9]' WHERE version = 1", 5),
        ("UPDATE versions SET scales = '[1.0, 0.9]' WHERE version = 2", 6),
        ("UPDATE versions SET scales = '[1.0]' WHERE version = 1", 4),
        ("UPDATE versions SET scales = '[]' WHERE version = 1", 5),
        ("UPDATE versions SET weights = '[]' WHERE version = 2", 5),
        ("UPDATE receipts SET norm = norm * 1.001 WHERE round = 1 AND client = 'ann'", 4),
        ("UPDATE receipts SET norm = norm * 1.001 WHERE round = 2 AND client = 'ben'", 6),
        ("UPDATE receipts SET norm = NULL WHERE round = 1 AND client = 'ben'", 6),
    ],
)
async def test_what_was_changed_of_scales_and_norms_is_found(limited: History, statement: str, invariant: int) -> None:
    await limited.execute(statement)
    assert invariant in await limited.invariants()


@pytest.mark.parametrize("moment", [0, 1])
@pytest.mark.parametrize("lost", [True, False])
async def test_a_moment_that_the_next_round_needs_is_missed_when_it_is_lost_or_corrupt(
    fair: History, moment: int, lost: bool
) -> None:
    digest = (await fair.store.versions(RunId("r")))[-1].moments[moment]
    if lost:
        await fair.blobs.delete(digest)
    else:
        path = await fair.blobs.path(digest)
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert await fair.invariants() == {7}
    await fair.deliver_last()
    assert (await fair.recovered()).outcome is Outcome.ABORTED  # as after the loss of a base


async def test_moments_are_kept_as_long_as_a_round_or_verify_needs_them(fair: History) -> None:
    _, first, second = await fair.store.versions(RunId("r"))

    async def kept(keep_updates: int, *over: str) -> tuple[bool, bool]:
        found = await kept_blobs(fair.store, keep_updates, {RunId(run) for run in over})
        return set(first.moments) <= found, set(second.moments) <= found

    assert await kept(2) == (True, True)
    assert await kept(1) == (True, True)  # round 2 began with the first moments
    assert await kept(0) == (False, True)
    assert await kept(0, "r") == (False, False)
    assert await kept(0, "another") == (False, True)


async def test_a_history_without_the_moments_it_no_longer_needs_is_clean(fair: History) -> None:
    await collect(fair.store, fair.blobs, keep_updates=0)
    report = await verify_state(fair.store, SqlMembership(fair.store), fair.blobs, fair.folder / "scratch")
    assert report.is_clean, report.lines()
    assert (report.aggregates_repeated, report.aggregates_not_kept) == (0, 2)


async def test_an_acknowledged_update_of_the_open_round_that_is_gone_is_found(unwritten: History) -> None:
    await unwritten.make((2, 1), leave_open=True)
    assert await unwritten.invariants() == set()
    (row,) = await unwritten.store.receipts(RunId("r"), RoundNumber(2))
    await unwritten.blobs.delete(row.receipt.digest)
    assert await unwritten.invariants() == {1}


async def test_an_update_withdrawn_by_a_revocation_is_accounted_for(unwritten: History) -> None:
    await unwritten.make((2, 1), leave_open=True)
    await unwritten.revoke(CLIENTS[0])
    assert await unwritten.store.receipts(RunId("r"), RoundNumber(2)) == []
    assert await unwritten.invariants() == set()


async def test_an_entry_of_the_audit_log_that_was_changed_is_found(unwritten: History) -> None:
    await unwritten.make((2,))
    membership = SqlMembership(unwritten.store)
    for number in range(3):
        entry = NewAuditEntry(1.0, "admin", "1f", "StartRun", f"runs/{number}", "ACCEPTED")
        await membership.change_membership(MembershipChange(entry))
    assert await unwritten.invariants() == set()
    await unwritten.execute("UPDATE audit_log SET actor = 'nobody' WHERE sequence = 2")
    assert await unwritten.invariants() == {8}


async def test_a_row_of_the_roster_that_was_changed_is_found(unwritten: History) -> None:
    await unwritten.make((2,))
    membership = SqlMembership(unwritten.store)
    roster = RosterLog(membership, AuditLog(membership, lambda: 1.0))
    for name in ("ann", "ben"):
        key, member = new_key(), Principal(ClientId(name), MemberRole.CLIENT)
        proof = endorsed(key, "", name, public_der(key))
        await roster.register(member, "G", PeerKeyClaim(public_der(key), b"", proof))
    report = await verify_state(unwritten.store, membership, unwritten.blobs, unwritten.folder / "scratch")
    assert (report.is_clean, report.roster_entries) == (True, 2)
    await unwritten.execute("UPDATE roster SET group_name = 'H' WHERE sequence = 1")
    assert await unwritten.invariants() == {11}


async def test_updates_past_retention_are_collected_and_the_rest_still_verifies(history: History) -> None:
    await collect(history.store, history.blobs, keep_updates=2)
    report = await verify_state(history.store, SqlMembership(history.store), history.blobs, history.folder / "scratch")
    assert report.is_clean
    assert (report.aggregates_repeated, report.aggregates_not_kept) == (1, 1)


async def test_a_blob_nobody_names_is_an_orphan_and_goes(history: History) -> None:
    draft = history.folder / "stray"
    draft.write_bytes(b"stray")
    await history.blobs.put(Digest("ff" * 32), draft)
    report = await verify_state(history.store, SqlMembership(history.store), history.blobs, history.folder / "scratch")
    assert (report.is_clean, report.orphan_blobs) == (True, 1)
    await collect(history.store, history.blobs, keep_updates=100)
    assert set(await history.blobs.digests()) == await kept_blobs(history.store, 100)


@pytest.mark.parametrize("rule", ["trimmed_mean", "median", "multi_krum", "median_norm_clip"])
async def test_a_version_that_a_rule_made_is_made_again_with_the_same_bits(unwritten: History, rule: str) -> None:
    clients = ("ann", "ben", "cem", "dan", "eva")
    unwritten.clients = tuple(ClientId(name) for name in clients)
    unwritten.examples, unwritten.lengths = (10, 11, 12, 13, 14), (1.0, 2.0, 1.5, 1.25, 1.75)
    weighting = "uniform" if rule == "multi_krum" else "adaptive"
    unwritten.spec = small_spec(
        format="pluralllm.run/2",
        rounds=3,
        round={"min_clients": 5, "target_clients": 5},
        aggregation={"rule": rule, "optimizer": "fedadam", "server_learning_rate": 0.01, "weighting": weighting},
    )
    await unwritten.make([5, 5])
    report = await verify_state(
        unwritten.store, SqlMembership(unwritten.store), unwritten.blobs, unwritten.folder / "scratch"
    )
    assert report.is_clean, report.lines()
    assert report.aggregates_repeated == 2
    _, first, second = await unwritten.store.versions(RunId("r"))
    for version in (first, second):
        if rule == "multi_krum":
            assert version.weights == (1.0, 0.0, 1.0, 1.0, 1.0), "the longest one is the farthest from the others"
        if rule == "median_norm_clip":
            assert version.scales == pytest.approx((1.0, 0.75, 1.0, 1.0, 0.857), rel=0.1)
    await unwritten.execute("UPDATE versions SET weights = '[1.0, 1.0, 0.0, 1.0, 1.0]' WHERE version = 2")
    assert {4, 6} <= await unwritten.invariants() if rule == "multi_krum" else 6 in await unwritten.invariants()


async def test_a_run_of_sums_is_solved_again_with_the_same_bits_in_both_stages(unwritten: History) -> None:
    unwritten.spec = SUMS_SPEC
    await unwritten.make([2, 2, 2])
    report = await verify_state(
        unwritten.store, SqlMembership(unwritten.store), unwritten.blobs, unwritten.folder / "scratch"
    )
    assert report.findings == []
    assert report.aggregates_repeated == 3


async def test_a_version_of_sums_that_is_not_the_solvers_is_found(unwritten: History) -> None:
    unwritten.spec = SUMS_SPEC
    await unwritten.make([2, 2])
    await unwritten.execute("UPDATE versions SET moments = '[]' WHERE version = 1")
    assert 7 in await unwritten.invariants()


@pytest.mark.parametrize(
    ("change", "invariant", "problem"),
    [
        ("content = replace(content, 'ann', 'eve')", 7, "the checkpoint of run r"),
        ("sequence = sequence + 1000", 6, "the checkpoint has seen events that the log does not have"),
        ("sequence = sequence - 1", 6, "is not the state that the log gives"),
        ("format = format + 1", None, ""),
    ],
)
async def test_a_checkpoint_that_is_not_what_the_log_gives_is_found(
    unwritten: History, change: str, invariant: int | None, problem: str
) -> None:
    await unwritten.make([2])
    await unwritten.execute(f"UPDATE checkpoints SET {change}")
    report = await verify_state(
        unwritten.store, SqlMembership(unwritten.store), unwritten.blobs, unwritten.folder / "scratch"
    )
    assert [finding.invariant for finding in report.findings] == ([] if invariant is None else [invariant])
    assert all(problem in finding.problem for finding in report.findings)
