"""The coordinator reports times and clients to the round machine and carries out its effects, near the limits of time."""

import asyncio
import errno
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs
from support.coordinator_harness import small_spec
from support.memory_coordinator import TIMING, Hooks, MemoryCoordinator, settle, until

from pluralllm.common.errors.private_rounds import SumImplausible
from pluralllm.common.errors.tree import (
    InvalidArgument,
    InvalidSpec,
    PluralError,
    RunNotEnded,
    SpecMismatch,
    StaleSession,
    StorageFull,
    StoreFailed,
    UpdateLost,
)
from pluralllm.common.words.ids import ClientId, Digest, RunId
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.aggregation.next_version import NextVersion, write_next
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Outcome, Phase
from pluralllm.server.runs.coordinator import MAX_STEPS_AT_ONCE, RETRY_S, Timing
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.recovery import recover
from pluralllm.server.runs.troubles import MAX_PROBLEM
from pluralllm.server.storage.store import Change, RoundOutcome, RunRecord, Store

ANN, BEN, CAT = ClientId("ann"), ClientId("ben"), ClientId("cat")
LEASE_S, SILENCE_S = TIMING.lease_s, TIMING.silence_s


@pytest.fixture
def place(tmp_path: Path) -> MemoryCoordinator:
    return MemoryCoordinator(tmp_path)


def roster(run: LiveRun) -> list[str]:
    return list(run.state.roster)


def losses(run: LiveRun) -> list[tuple[str, str]]:
    return [(loss.client, loss.reason) for loss in run.state.losses]


# Connected clients and leases


async def test_a_client_that_is_silent_for_a_lease_loses_its_slot_and_one_that_polls_keeps_it(
    place: MemoryCoordinator,
) -> None:
    run = await place.collecting("ann", "ben")
    place.clock.advance(LEASE_S - 0.001)
    place.parts.leases.renew(BEN, place.clock.now_s())
    await place.look(run)
    assert list(run.state.active) == [ANN, BEN]
    place.clock.advance(0.001)
    await place.look(run)
    assert losses(run) == [("ann", "lease expired after 20 s of silence")]
    assert list(run.state.active) == [BEN]
    assert place.parts.leases.of(ANN) is None
    assert place.parts.leases.of(BEN) is not None
    assert run.state.excluded == ()


async def test_a_silent_clients_slot_is_free_as_soon_as_the_store_works_again(tmp_path: Path) -> None:
    hooks = Hooks()
    place = MemoryCoordinator(tmp_path, before=hooks)
    run = await place.collecting("ann", "ben")
    place.clock.advance(LEASE_S)
    place.parts.leases.renew(BEN, place.clock.now_s())
    with hooks.failing("store.apply", StoreFailed(problem="locked")), pytest.raises(StoreFailed):
        await place.look(run)
    assert list(run.state.active) == [ANN, BEN]
    await place.look(run)
    assert list(run.state.active) == [BEN], "it does not wait for another lease"
    assert place.parts.leases.of(ANN) is None


async def test_a_client_that_has_delivered_is_not_disconnected_while_the_others_work(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    await place.deliver(run, "ann", place.update(run))
    place.clock.advance(LEASE_S)
    place.parts.leases.renew(BEN, place.clock.now_s())
    await place.look(run)
    assert (losses(run), roster(run)) == ([], [ANN, BEN]), "nobody looks whether it is there"


async def test_a_look_costs_a_pass_over_the_clients_only_where_it_matters_who_is_there(
    place: MemoryCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, passes, look = await place.new_run(), 0, place.parts.presence.look

    def counted(now_s: float) -> Any:
        nonlocal passes
        passes += 1
        return look(now_s)

    monkeypatch.setattr(place.parts.presence, "look", counted)
    await place.look(run)
    assert (run.state.phase, passes) == (Phase.WAITING, 1)
    await place.coordinator.dispatch(run, ev.RunCancelled(0.0, "enough"))
    run = await place.collecting("ann", "ben", run_id="full")
    passes = 0
    await place.look(run)
    assert (run.state.free_slots, passes) == (0, 0)


async def test_a_released_client_has_no_lease_and_its_poll_is_answered(place: MemoryCoordinator) -> None:
    await place.collecting("ann", "ben")
    bell = place.parts.client_bells.of(ANN)
    before = bell.rings
    place.coordinator.release(ANN)
    assert (place.parts.leases.of(ANN), bell.rings) == (None, before + 1)


async def test_a_client_of_the_roster_that_is_silent_is_disconnected(place: MemoryCoordinator) -> None:
    run = await place.new_run(round={"min_clients": 3, "target_clients": 3})
    place.clock.advance(LEASE_S)
    await place.hello("ann")
    await place.look(run)
    assert roster(run) == [ANN]
    place.clock.advance(SILENCE_S)
    await place.look(run)
    assert roster(run) == [ANN]
    place.clock.advance(0.001)
    await place.look(run)
    assert roster(run) == []
    assert run.state.excluded == ()


async def test_an_open_poll_keeps_a_client_in_the_roster(place: MemoryCoordinator) -> None:
    run = await place.new_run(round={"min_clients": 3, "target_clients": 3})
    ann = await place.hello("ann")
    ann.polls_open = 1
    await place.look(run)
    events = run.sequence
    place.clock.advance(10 * LEASE_S)
    await place.look(run)
    assert roster(run) == [ANN]
    assert run.sequence == events, "nothing has happened"


async def test_after_a_restart_clients_have_the_time_of_a_lease_to_reconnect(place: MemoryCoordinator) -> None:
    run = await place.new_run(round={"min_clients": 3, "target_clients": 3})
    await place.hello("ann")
    await place.hello("ben")
    await place.look(run)
    place.clock.advance(1000)
    following = await place.next_process()
    run = following.parts.runs.get("r")
    following.clock.advance(LEASE_S - 0.001)
    await following.look(run)
    assert roster(run) == [ANN, BEN]
    await following.hello("ben")
    following.clock.advance(0.001)
    await following.look(run)
    assert roster(run) == [BEN]


async def test_the_time_to_reconnect_begins_when_the_process_starts_to_serve(place: MemoryCoordinator) -> None:
    run = await place.new_run(round={"min_clients": 3, "target_clients": 3})
    await place.hello("ann")
    await place.look(run)
    following = MemoryCoordinator(place.folder, clock=place.clock, tables=place.tables)
    place.clock.advance(1000)  # it waits for its turn as a standby, for example
    await following.coordinator.start()
    await following.stop()
    place.clock.advance(LEASE_S - 0.001)
    await following.look(following.parts.runs.get("r"))
    assert roster(following.parts.runs.get("r")) == [ANN]


async def test_leases_follow_the_slots_and_survive_no_change_of_the_task(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    leases = place.parts.leases
    assert leases.is_held(run.task_name(ANN))
    assert leases.is_held(run.task_name(BEN))
    first = leases.of(ANN)
    await place.coordinator.dispatch(
        run, ev.UpdateRefused(place.clock.now_s(), run.state.round, BEN, "NOT_FINITE", "NaN")
    )
    assert leases.of(ANN) is first
    rings = place.parts.client_bells.of(BEN).rings
    await place.coordinator.remove_client(BEN)
    assert leases.of(BEN) is None
    assert leases.of(ANN) is first
    assert place.parts.client_bells.of(BEN).rings > rings


async def test_a_lease_on_the_task_of_an_ended_round_is_replaced(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", round={"on_missed_quorum": "skip", "deadline_s": 10})
    task = run.task_name(ANN)
    place.clock.advance(10)
    await place.hello("ben")  # is connected and has no part in the round
    rings, bens_rings = (place.parts.client_bells.of(client).rings for client in (ANN, BEN))
    await place.coordinator.dispatch(run, ev.ClockTicked(place.clock.now_s()))
    assert place.parts.client_bells.of(BEN).rings == bens_rings, "the end of a round is no news for others"
    place.parts.sessions.close(BEN)
    assert not place.parts.leases.is_held(task)
    assert place.parts.client_bells.of(ANN).rings > rings, "a client learns at once that its task has ended"
    ann = place.parts.sessions.of(ANN)
    ann.last_seen_s = place.clock.now_s()
    await place.look(run)
    assert place.parts.leases.is_held(run.task_name(ANN))
    assert run.task_name(ANN) != task


async def test_a_client_with_a_lease_in_one_run_is_not_idle_in_another(place: MemoryCoordinator) -> None:
    first = await place.collecting("ann", "ben")
    second = await place.new_run("second")
    await place.look(second)
    assert roster(second) == []
    assert place.parts.leases.held_in(second.id) == {}
    await place.coordinator.dispatch(first, ev.RunCancelled(place.clock.now_s(), "enough"))
    await place.look(second)
    assert roster(second) == [ANN, BEN]


async def test_a_group_takes_the_part_that_the_spec_names(place: MemoryCoordinator) -> None:
    groups = {"train": ["A", "B"], "held_out": ["C"]}
    run = await place.new_run(groups=groups)
    for client, group in (("ann", "A"), ("ben", "B"), ("cat", "C"), ("dan", "D")):
        await place.hello(client, group=group, role=GroupRole.HELD_OUT if group == "C" else GroupRole.TRAIN)
    await place.look(run)
    assert (str(run.state.phase), list(run.state.cohort)) == ("evaluating", [ANN, BEN, CAT])
    for client in (ANN, BEN, CAT):
        score = ev.Score(
            client, place.parts.sessions.of(client).group, GroupRole.TRAIN, run.state.version, 0.5, 0.5, None, 9
        )
        await place.coordinator.dispatch(run, ev.EvaluationArrived(place.clock.now_s(), score))
    await place.look(run)
    assert (str(run.state.phase), list(run.state.cohort)) == ("collecting", [ANN, BEN]), (
        "a held-out group does not train"
    )


async def test_runs_that_are_not_started_or_have_ended_get_no_reports(
    place: MemoryCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = small_spec().canonical_json()
    run = await place.coordinator.create_run("r", spec)
    await place.hello("ann")
    await place.look(run)
    assert run.sequence == 0
    await place.coordinator.dispatch(run, ev.RunStarted(0.0))
    await place.coordinator.dispatch(run, ev.RunCancelled(0.0, "enough"))
    ended = run.sequence
    place.clock.advance(10 * LEASE_S)
    with monkeypatch.context() as patched:
        patched.setattr(place.coordinator, "_losses", None)  # nothing is asked about a run that is over
        await place.look(run)
    assert run.sequence == ended


async def test_one_look_ends_after_some_steps_although_each_step_changes_the_run(
    place: MemoryCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await place.new_run()
    asked = 0

    def observations(_: LiveRun, __: object) -> tuple[ev.Event, ...]:
        nonlocal asked
        asked += 1
        return (ev.RunPaused(0.0) if asked % 2 else ev.RunResumed(0.0),)

    monkeypatch.setattr(place.coordinator, "_observations", observations)
    await place.look(run)
    assert asked == MAX_STEPS_AT_ONCE == 100


async def test_a_look_ends_with_the_first_reports_that_change_nothing(
    place: MemoryCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await place.new_run()
    looks: list[LiveRun] = []

    def observations(seen: LiveRun, _: object) -> tuple[ev.Event, ...]:
        looks.append(seen)
        return ()

    monkeypatch.setattr(place.coordinator, "_observations", observations)
    await place.look(run)
    assert looks == [run]


async def test_a_look_gives_the_leases_that_an_interrupted_effect_has_not_given(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    place.parts.leases.release(ANN)
    rings = place.parts.client_bells.of(ANN).rings
    await place.look(run)
    assert place.parts.leases.is_held(run.task_name(ANN))
    assert place.parts.client_bells.of(ANN).rings == rings + 1
    with capture_logs() as logs:
        await place.coordinator.dispatch(run, ev.RunPaused(5.0))
    assert [(entry["event"], entry["kind"]) for entry in logs] == [("run.event", "RunPaused")]


async def test_a_client_whose_update_is_not_waited_for_loses_its_lease_when_averaging_begins(
    place: MemoryCoordinator,
) -> None:
    rounds = {"min_clients": 2, "grace_after_quorum_s": 0}
    run, hooks = await place.collecting("ann", "ben", "cat", round=rounds), Hooks()
    place.before = hooks
    for seed, client in enumerate(("ann", "ben")):
        await place.deliver(run, client, place.update(run, seed))
    assert place.parts.leases.of(CAT) is not None
    with hooks.failing("blobs.path", StoreFailed(problem="no network")):
        await place.coordinator.dispatch(run, ev.ClockTicked(place.clock.now_s()))
        assert run.state.phase is Phase.AGGREGATING
        assert place.parts.leases.held_in(run.id) == {}
        await settle()
    await place.stop()


# Hello


async def test_a_client_that_has_failed_for_good_takes_part_again_after_hello(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    await place.coordinator.dispatch(run, ev.PlaceLost(place.clock.now_s(), ANN, "cannot", permanent=True))
    assert run.state.is_excluded(ANN)
    await place.hello("ben")
    assert run.state.is_excluded(ANN)
    await place.hello("ann")
    assert not run.state.is_excluded(ANN)


async def test_clients_that_have_failed_for_good_are_not_counted_as_idle_and_the_run_says_that_it_stands_still(
    place: MemoryCoordinator,
) -> None:
    run = await place.new_run()
    await place.hello("ann")
    await place.hello("ben")
    before = place.parts.status.of(run)
    await place.coordinator.dispatch(
        run, ev.PlaceLost(place.clock.now_s(), ANN, "MODEL_UNAVAILABLE: x", permanent=True)
    )
    after, summary = place.parts.status.of(run), place.parts.status.of(run, with_participants=False)
    assert ("2 now" in before.next, before.blocked) == (True, "")
    assert "2 training clients, and 1 can take part. ann takes no part" in after.blocked
    assert after.next.startswith(f"stands still: {after.blocked}")
    assert summary.blocked == after.blocked
    await place.hello("cat")
    now = place.parts.status.of(run)
    assert ("2 now" in now.next, now.blocked) == (True, ""), now.next  # ben and cat
    await place.hello("ann")
    assert "3 now" in place.parts.status.of(run).next


async def test_hello_wakes_the_poll_of_an_older_daemon_and_the_loop(place: MemoryCoordinator) -> None:
    await place.hello("ann")
    before, wakes = place.parts.client_bells.of(ANN).rings, place.coordinator._wake.rings
    await place.hello("ann")
    assert place.parts.client_bells.of(ANN).rings == before + 1
    assert place.coordinator._wake.rings > wakes
    assert place.tables.clients[ANN].training_questions == 50


async def test_a_hello_that_cannot_be_stored_opens_no_session(tmp_path: Path) -> None:
    hooks = Hooks()
    place = MemoryCoordinator(tmp_path, before=hooks)
    with hooks.failing("store.save_client", StorageFull(what="the database")), pytest.raises(StorageFull):
        await place.hello("ann")
    assert place.parts.sessions.get(ANN) is None


async def test_a_member_that_is_revoked_while_it_says_hello_gets_no_session(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)

    async def revoked_meanwhile(operation: str, about: object) -> None:
        if operation == "store.save_client":
            await place.coordinator.remove_client(ANN)

    place.before = revoked_meanwhile
    with pytest.raises(StaleSession):
        await place.hello("ann")
    assert place.parts.sessions.get(ANN) is None
    assert place.parts.presence.revoked == {ANN}
    place.before = Hooks()
    await place.hello("ann")  # a new member of the same name
    assert place.parts.presence.revoked == frozenset()
    await place.stop()


async def test_a_run_that_an_operator_starts_has_its_clients_at_once_and_does_not_wait_for_the_loop(
    place: MemoryCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for client in (ANN, BEN):
        await place.hello(client)
    first, second = [await place.coordinator.create_run(name, small_spec().canonical_json()) for name in ("a", "b")]
    await place.coordinator.steer(first, ev.RunStarted(place.clock.now_s()))
    assert (first.state.phase, roster(first)) == (Phase.EVALUATING, [ANN, BEN])
    assert place.parts.leases.count_in(first.id) == 2
    with pytest.raises(RunNotEnded):
        await place.coordinator.steer(first, ev.RunArchived(place.clock.now_s()))

    async def broken(_: LiveRun) -> None:
        raise StoreFailed(problem="no network")

    monkeypatch.setattr(place.coordinator, "advance", broken)
    await place.coordinator.steer(second, ev.RunStarted(place.clock.now_s()))
    assert second.state.phase is Phase.WAITING, "the operator's step holds, and the loop looks again"
    assert "no network" in place.parts.troubles.of(second.id)


async def test_a_revoked_member_leaves_every_run_and_its_session_ends(place: MemoryCoordinator) -> None:
    run, update = await place.collecting("ann", "ben"), None
    update = place.update(run)
    await place.deliver(run, "ann", update)
    rings = place.parts.client_bells.of(ANN).rings
    await place.coordinator.remove_client(ANN)
    assert place.parts.client_bells.of(ANN).rings > rings
    assert [receipt.client for receipt in run.state.receipts] == []
    assert roster(run) == [BEN]
    with pytest.raises(StaleSession):
        place.parts.sessions.of(ANN)
    ann, ben = place.parts.status.of(run).participants
    assert (ann.state.value, ann.reason, ben.state.value) == ("revoked", "", "assigned")
    await place.hello("ann")
    assert place.parts.status.of(run).participants[0].state.value == "lost", "a new member may have the name"


async def test_a_removal_that_cannot_be_stored_is_made_up_for_unless_the_member_comes_back(tmp_path: Path) -> None:
    hooks = Hooks()
    place = MemoryCoordinator(tmp_path, before=hooks)
    run = await place.collecting("ann", "ben")
    for returns in (True, False):
        with hooks.failing("store.apply", StorageFull(what="the database")):
            await place.coordinator.remove_client(ANN)
        assert "the database" in place.parts.troubles.of(run.id)
        assert ANN in roster(run)
        if returns:
            await place.hello("ann")
        await place.look(run)
        assert run.state.is_excluded(ANN) == (not returns)


async def test_hello_and_removal_change_only_runs_that_go_on_and_know_the_client(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    await place.coordinator.dispatch(run, ev.PlaceLost(place.clock.now_s(), ANN, "cannot", permanent=True))
    sequence = run.sequence
    await place.hello("ben")
    assert run.sequence == sequence
    await place.coordinator.dispatch(run, ev.RunCancelled(place.clock.now_s(), "enough"))
    sequence = run.sequence
    await place.hello("ann")
    await place.coordinator.remove_client(BEN)
    assert run.sequence == sequence


# Runs


async def test_a_run_is_created_once_and_another_spec_under_its_name_is_refused(place: MemoryCoordinator) -> None:
    spec = small_spec().canonical_json()
    rings = place.parts.run_bell.rings
    run = await place.coordinator.create_run("r", spec)
    assert place.parts.run_bell.rings == rings + 1
    assert await place.coordinator.create_run("r", spec) is run
    assert place.parts.run_bell.rings == rings + 1
    with pytest.raises(SpecMismatch):
        await place.coordinator.create_run("r", small_spec(seed=6).canonical_json())
    for bad in ("", "a/b", "x" * 65):
        with pytest.raises(InvalidArgument, match="run_id"):
            await place.coordinator.create_run(bad, spec)
    with pytest.raises(InvalidSpec):
        await place.coordinator.create_run("s", b"{")


async def test_two_calls_create_one_run(place: MemoryCoordinator) -> None:
    spec = small_spec().canonical_json()
    first, second = await asyncio.gather(*(place.coordinator.create_run("r", spec) for _ in range(2)))
    assert first is second


async def test_a_new_runs_first_version_is_not_deleted_before_its_record_is_written(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)

    async def collect_in_between(operation: str, about: object) -> None:
        if operation == "store.create_run":
            collecting.append(asyncio.create_task(place.parts.retention.collect(set())))
            for _ in range(10):
                await asyncio.sleep(0)

    collecting: list[asyncio.Task[None]] = []
    place.before = collect_in_between
    run = await place.coordinator.create_run("r", small_spec().canonical_json())
    await asyncio.gather(*collecting)
    assert await place.parts.blobs.exists(run.first.digest)


async def test_a_stored_run_that_this_release_cannot_read_is_left_out_and_its_name_stays_taken(
    place: MemoryCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.new_run("r")
    await place.new_run("s", seed=6)

    async def unreadable(store: Store, record: RunRecord) -> object:
        if record.id == "r":
            raise InvalidSpec(file="of run r", problems="  unknown key")
        return await recover(store, record)

    monkeypatch.setattr("pluralllm.server.runs.recovery.recover", unreadable)
    with capture_logs() as logs:
        following = await place.next_process()
    assert [run.id for run in following.parts.runs.all()] == ["s"]
    assert "run.unreadable" in {entry["event"] for entry in logs}
    with pytest.raises(SpecMismatch):
        await following.coordinator.create_run("r", small_spec().canonical_json())


async def test_a_restart_continues_an_averaging_that_had_not_ended(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    hooks = Hooks()
    place.before = hooks
    await place.deliver(run, "ann", place.update(run, 1))
    with hooks.failing("blobs.path", StoreFailed(problem="no network")):
        await place.deliver(run, "ben", place.update(run, 2))
        for _ in range(20):
            await asyncio.sleep(0)
        await place.stop()
    assert run.state.phase is Phase.AGGREGATING
    following = MemoryCoordinator(place.folder, clock=place.clock, tables=place.tables)
    await following.coordinator.start()
    run = following.parts.runs.get("r")
    await following.coordinator.until_averaged(run)
    await following.stop()
    assert run.state.version == 1


async def test_a_start_reads_the_clients_rows_and_restarts_the_deadlines_of_open_runs(place: MemoryCoordinator) -> None:
    await place.collecting("ann", "ben")
    ended = await place.new_run("ended", seed=6)
    await place.coordinator.dispatch(ended, ev.RunCancelled(place.clock.now_s(), "enough"))
    before = ended.sequence
    place.clock.advance(90)  # the deadline of the round comes ten seconds later
    calls = Hooks()
    following = MemoryCoordinator(place.folder, clock=place.clock, tables=place.tables, before=calls)
    with capture_logs() as logs:
        await following.coordinator.start()
    await following.stop()
    run = following.parts.runs.get("r")
    assert run.state.deadline_s == place.clock.now_s() + 100
    assert following.parts.runs.get("ended").sequence == before
    assert [entry["run"] for entry in logs if entry["event"] == "run.recovered"] == ["r"]
    assert following.parts.leases.is_held(run.task_name(ANN)), "clients have their tasks at once"
    calls.calls.clear()
    await following.hello("ann")
    assert [name for name, _ in calls.calls] == [], "the row is up to date, so nothing is written"


async def test_files_without_a_record_are_deleted_at_the_start(place: MemoryCoordinator) -> None:
    await place.new_run()
    stray = place.folder / "stray"
    stray.write_bytes(b"x")
    await place.parts.blobs.put(Digest("0" * 64), stray)
    following = MemoryCoordinator(place.folder, clock=place.clock, tables=place.tables)
    await following.coordinator.start()
    await until(lambda: not (place.folder / "blobs" / ("0" * 64)).exists())
    await following.stop()


# Ends of rounds


async def deliver_all(place: MemoryCoordinator, run: LiveRun) -> None:
    """Delivers the updates of all clients of the round, and waits until they are averaged."""
    for seed, client in enumerate(run.state.cohort, start=10 * run.state.round):
        await place.deliver(run, client, place.update(run, seed))
    await place.coordinator.until_averaged(run)


async def test_a_rule_that_shortens_half_of_all_updates_is_on_record_and_logs_no_warning(
    place: MemoryCoordinator,
) -> None:
    rule = {"rule": "median_norm_clip", "weighting": "uniform"}
    run = await place.collecting("ann", "ben", "cem", format="pluralllm.run/2", aggregation=rule)
    with capture_logs() as logs:
        await deliver_all(place, run)
    assert run.state.version == 1
    assert sorted(run.newest.scales)[0] < 1.0
    assert "update.shortened" not in [line["event"] for line in logs]


async def test_a_round_publishes_a_version_and_deletes_the_files_that_nobody_needs(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    await place.coordinator.until_averaged(run)  # nothing is averaged, so there is nothing to wait for
    rings = place.parts.run_bell.rings
    await deliver_all(place, run)
    assert (run.state.version, run.newest.version, run.newest.updates[0][0]) == (1, 1, "ann")
    assert place.parts.run_bell.rings > rings
    stray = place.folder / "stray"
    stray.write_bytes(b"x")
    await place.parts.blobs.put(Digest("0" * 64), stray)
    await place.look(run)
    await deliver_all(place, run)
    assert run.state.version == 2
    await place.stop()
    await place.coordinator._collect()
    assert not await place.parts.blobs.exists(Digest("0" * 64))


async def test_a_round_reads_the_store_once_when_its_blobs_are_collected(place: MemoryCoordinator) -> None:
    run, hooks = await place.collecting("ann", "ben"), Hooks()
    await place.coordinator._collect()
    place.before = hooks
    await deliver_all(place, run)
    await until(lambda: "store.named_blobs" in [operation for operation, _ in hooks.calls])
    assert await place.parts.models.record(run.id, run.newest.version) == run.newest  # as each client asks for it
    reads = [operation for operation, _ in hooks.calls if operation.startswith("store.")]
    assert [operation for operation in reads if operation != "store.apply"] == ["store.named_blobs"]


async def test_a_new_version_is_not_deleted_before_its_record_is_written(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    collecting: list[asyncio.Task[None]] = []

    async def collect_in_between(operation: str, about: object) -> None:
        changes = cast("Sequence[Change]", about) if operation == "store.apply" else ()
        if any(isinstance(change.event, ev.ModelAveraged) for change in changes):
            collecting.append(asyncio.create_task(place.parts.retention.collect(set())))
            for _ in range(10):
                await asyncio.sleep(0)

    place.before = collect_in_between
    await deliver_all(place, run)
    await asyncio.gather(*collecting)
    assert (len(collecting), run.state.version) == (1, 1)
    assert await place.parts.blobs.exists(run.newest.digest)


async def test_an_averaging_that_fails_for_a_while_is_tried_again_and_told_as_a_trouble(
    place: MemoryCoordinator,
) -> None:
    run, hooks = await place.collecting("ann", "ben"), Hooks()
    place.before = hooks
    await place.deliver(run, "ann", place.update(run, 1))
    with hooks.failing("blobs.path", StoreFailed(problem="no network")), capture_logs() as logs:
        await place.deliver(run, "ben", place.update(run, 2))
        await until(lambda: place.parts.troubles.of(run.id) != "")
        assert "no network" in place.parts.troubles.of(run.id)
        await settle()
        place.clock.advance(RETRY_S)  # the second try fails as well, and says nothing new
        await settle()
    assert [entry["event"] for entry in logs].count("run.in_trouble") == 1
    tries = [operation for operation, _ in hooks.calls].count("blobs.path")
    place.clock.advance(RETRY_S - 0.001)
    await place.coordinator.dispatch(run, ev.RunPaused(place.clock.now_s()))  # a step starts no second averaging
    await settle()
    assert [operation for operation, _ in hooks.calls].count("blobs.path") == tries
    place.clock.advance(0.001)
    await place.coordinator.until_averaged(run)
    assert run.state.version == 1
    assert place.parts.troubles.of(run.id) == ""


async def test_a_round_whose_update_is_lost_is_abandoned_and_the_run_goes_on(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    receipt = await place.deliver(run, "ann", place.update(run, 1))
    await place.parts.blobs.delete(receipt.receipt.digest)
    await place.deliver(run, "ben", place.update(run, 2))
    await place.coordinator.until_averaged(run)
    assert (run.state.phase, run.state.version) == (Phase.WAITING, 0)
    record = await place.parts.store.round(run.id, run.state.round)
    assert record is not None
    assert record.outcome is RoundOutcome.ABANDONED


async def test_members_of_two_implausible_sums_in_a_row_are_named(
    place: MemoryCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = {"min_clients": 2, "target_clients": 2, "evaluate_every": 100}
    run = await place.collecting("ann", "ben", rounds=9, round=rounds)
    sums, reasons = [True, False, False, True, False], list[str]()

    async def sum_of(*arguments: Any) -> NextVersion:
        if sums.pop(0):
            return await write_next(*arguments)
        raise SumImplausible(problem="it is too long")

    monkeypatch.setattr("pluralllm.server.runs.coordinator.write_next", sum_of)
    while sums:
        number = run.state.round
        await deliver_all(place, run)
        record = await place.parts.store.round(run.id, number)
        assert record is not None
        reasons.append(record.reason.partition("after the other.")[2])
        await place.look(run)
    named = " The sum before was implausible, too: ann, ben took part in both."
    assert reasons == ["", "", named, "", ""]
    await place.stop()


async def test_a_lost_update_does_not_say_that_a_sum_was_implausible(
    place: MemoryCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await place.collecting("ann", "ben")
    errors: list[PluralError] = [SumImplausible(problem="it is too long"), UpdateLost(digest="d", problem="gone")]

    async def fails(*_: object) -> NextVersion:
        raise errors.pop(0)

    monkeypatch.setattr("pluralllm.server.runs.coordinator.write_next", fails)
    for _ in range(2):
        number = run.state.round
        await deliver_all(place, run)
        await place.look(run)
    record = await place.parts.store.round(run.id, number)
    assert record is not None
    assert "implausible" not in record.reason
    await place.stop()


async def test_a_model_of_a_run_that_was_cancelled_meanwhile_is_deleted(
    place: MemoryCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await place.collecting("ann", "ben")
    digests: list[Digest] = []

    async def cancelled_meanwhile(*arguments: Any) -> NextVersion:
        made = await write_next(*arguments)
        await place.coordinator.dispatch(run, ev.RunCancelled(place.clock.now_s(), "enough"))
        await settle()
        digests.extend(draft.manifest.digest for draft in made.files)
        return made

    monkeypatch.setattr("pluralllm.server.runs.coordinator.write_next", cancelled_meanwhile)
    await deliver_all(place, run)
    assert run.state.version == 0
    assert [await place.parts.blobs.exists(digest) for digest in digests] == [False]


async def test_a_run_whose_base_is_lost_is_aborted(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    await place.parts.blobs.delete(run.newest.digest)
    await deliver_all(place, run)
    assert (run.state.phase, run.state.outcome) == (Phase.ENDED, Outcome.ABORTED)


async def test_a_disk_that_fails_in_an_averaging_stops_the_process(place: MemoryCoordinator) -> None:
    run, hooks = await place.collecting("ann", "ben"), Hooks()
    place.before = hooks
    await place.deliver(run, "ann", place.update(run, 1))
    with hooks.failing("blobs.path", OSError(errno.EIO, "broken")):
        await place.deliver(run, "ben", place.update(run, 2))
        await until(lambda: place.fail_stop.why is not None)
    await place.stop()


@pytest.mark.parametrize(
    ("error", "stops"),
    [
        (StoreFailed(problem="broken"), False),
        (OSError(errno.ENOSPC, "broken"), False),
        (OSError(errno.EIO, "broken"), True),
    ],
)
async def test_files_that_cannot_be_deleted_are_logged_and_stop_nothing_unless_the_disk_fails(
    place: MemoryCoordinator, error: Exception, stops: bool
) -> None:
    run, hooks = await place.collecting("ann"), Hooks()
    place.before = hooks
    with hooks.failing("blobs.digests", error), capture_logs() as logs:
        await deliver_all(place, run)
        await until(lambda: any(entry["event"] == "blobs.not_collected" for entry in logs))
    assert run.state.version == 1
    assert "broken" in next(entry["problem"] for entry in logs if entry["event"] == "blobs.not_collected")
    assert (place.fail_stop.why is not None) == stops


async def test_the_newest_moments_of_a_run_that_goes_on_are_kept(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", aggregation={"optimizer": "fedavgm"}, rounds=4)
    for number in (1, 2):
        await deliver_all(place, run)
        await place.coordinator._collect()
        assert await place.parts.blobs.exists(run.newest.moments[0])
        await place.look(run)
        assert run.state.round == number + 1


async def test_a_trouble_without_words_is_named_by_its_kind(place: MemoryCoordinator) -> None:
    run = await place.new_run()
    with capture_logs() as logs:
        for error in (ZeroDivisionError(), ZeroDivisionError(), StoreFailed(problem="no network"), OSError("no route")):
            place.coordinator._note_trouble(run, error)
    assert [(entry["event"], entry["problem"].split(":")[-1].strip()) for entry in logs] == [
        ("run.broken", "ZeroDivisionError"),
        ("run.in_trouble", str(StoreFailed(problem="no network")).split(":")[-1].strip()),
        ("run.in_trouble", "no route"),
    ]
    assert place.parts.troubles.of(run.id) == "no route"


async def test_a_long_trouble_is_cut_and_printable(place: MemoryCoordinator) -> None:
    run, hooks = await place.collecting("ann", "ben"), Hooks()
    place.before = hooks
    await place.deliver(run, "ann", place.update(run, 1))
    with hooks.failing("blobs.path", RuntimeError("\x1b" + "A" * MAX_PROBLEM)):
        await place.deliver(run, "ben", place.update(run, 2))
        await until(lambda: place.parts.troubles.of(run.id) != "")
    assert place.parts.troubles.of(run.id) == r"\x1b" + "A" * (MAX_PROBLEM - 1)
    assert MAX_PROBLEM == 400


async def test_the_log_has_no_stack_of_a_lost_update(place: MemoryCoordinator) -> None:
    run, hooks = await place.collecting("ann", "ben"), Hooks()
    place.before = hooks
    await place.deliver(run, "ann", place.update(run, 1))
    lost = UpdateLost(digest="d" * 64, problem="it is gone")
    lost.__cause__ = OSError("of the disk")
    with hooks.failing("blobs.path", lost), capture_logs() as logs:
        await place.deliver(run, "ben", place.update(run, 2))
        await until(lambda: run.state.phase is not Phase.AGGREGATING)
    [line] = [line for line in logs if line["event"] == "round.averaging_failed"]
    assert line["exc_info"] is None


def test_the_times_of_the_loop_are_those_of_the_documentation() -> None:
    assert Timing() == Timing(lease_s=60.0, silence_s=5.0, tick_s=0.25, keep_updates=3, look_s=0.05)
    assert RETRY_S == 5.0


async def test_the_end_of_a_run_wakes_the_clients_that_take_part_in_it(place: MemoryCoordinator) -> None:
    run = await place.new_run(groups={"train": ["A", "B"]})
    for client, group in (("ann", "A"), ("cat", "C")):
        await place.hello(client, group=group)
    rings = {client: place.parts.client_bells.of(client).rings for client in (ANN, CAT)}
    await place.coordinator.dispatch(run, ev.RunPaused(place.clock.now_s()))
    assert place.parts.client_bells.of(ANN).rings == rings[ANN], "the run has not ended"
    await place.coordinator.dispatch(run, ev.RunCancelled(place.clock.now_s(), "enough"))
    assert place.parts.client_bells.of(ANN).rings == rings[ANN] + 1
    assert place.parts.client_bells.of(CAT).rings == rings[CAT]
    await place.coordinator.dispatch(run, ev.UpdateRefused(place.clock.now_s(), run.state.round, ANN, "LATE", "late"))
    assert place.parts.client_bells.of(ANN).rings == rings[ANN] + 1, "it has ended once"


async def test_an_event_that_changes_nothing_rings_no_bell_and_an_event_clears_the_trouble(
    place: MemoryCoordinator,
) -> None:
    run = await place.new_run()
    place.parts.troubles.note(run.id, "no space")
    rings, wakes = place.parts.run_bell.rings, place.coordinator._wake.rings
    await place.coordinator.dispatch(run, ev.RunStarted(5.0))
    assert (place.parts.run_bell.rings, place.coordinator._wake.rings) == (rings, wakes)
    assert place.parts.troubles.of(run.id) == "no space"
    await place.coordinator.dispatch(run, ev.RunPaused(5.0))
    assert (place.parts.run_bell.rings, place.coordinator._wake.rings) == (rings + 1, wakes + 1)
    assert place.parts.troubles.of(RunId("r")) == ""


def test_draining_closes_every_bell(place: MemoryCoordinator) -> None:
    bell = place.parts.client_bells.of(ANN)
    place.coordinator.drain()
    assert bell.closed
    assert place.parts.run_bell.closed


# The loop


async def test_the_loop_looks_at_every_run_when_it_is_woken_and_a_broken_run_stops_no_other(
    place: MemoryCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await place.new_run("a"), await place.new_run("b", seed=6)
    looked: list[str] = []
    errors: dict[str, Exception] = {"a": RuntimeError("a bug")}

    async def advance(run: LiveRun) -> None:
        looked.append(run.id)
        if run.id in errors:
            raise errors[run.id]

    monkeypatch.setattr(place.coordinator, "advance", advance)
    await place.coordinator.start()
    await until(lambda: looked[-1:] == ["b"])
    assert place.parts.troubles.of(first.id) == "a bug"
    assert place.parts.troubles.of(second.id) == ""
    errors["a"] = StoreFailed(problem="no network")
    place.coordinator.wake()
    await until(lambda: "no network" in place.parts.troubles.of(first.id))
    looks = len(looked)
    place.clock.advance(TIMING.tick_s)
    await until(lambda: len(looked) >= looks + 2)
    await place.stop()


async def test_a_start_keeps_the_loop_and_the_times_of_clients(
    place: MemoryCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[str] = []
    monkeypatch.setattr(place.parts.tasks, "keep", lambda name, _: kept.append(name))
    await place.coordinator.start()
    assert kept == ["the coordinator's loop", "the times of clients"]
    await place.stop()


async def test_the_loop_beats_once_for_itself_and_once_for_each_run_and_leaves_no_tasks_behind(
    place: MemoryCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.new_run("a")
    await place.new_run("b", seed=6)
    beats: list[int] = []
    monkeypatch.setattr(place.parts.pulse, "beat", lambda: beats.append(1))
    await place.coordinator.start()
    await until(lambda: len(beats) == 3)
    await settle()
    assert len(beats) == 3
    tasks = len(asyncio.all_tasks())
    for number in range(2, 6):
        place.coordinator.wake()
        await until(lambda number=number: len(beats) == 3 * number)  # type: ignore[misc]
        await settle()
    assert len(asyncio.all_tasks()) == tasks
    place.clock.advance(TIMING.tick_s)
    await until(lambda: len(beats) == 18)
    await settle()
    assert len(asyncio.all_tasks()) == tasks
    await place.stop()


async def test_clients_that_come_at_the_same_time_cause_one_look_and_a_change_of_slots_causes_one_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = MemoryCoordinator(tmp_path, timing=replace(TIMING, look_s=3600.0))
    await place.collecting("ann", "ben")
    looks: list[str] = []

    async def advance(looked: LiveRun) -> None:
        looks.append(looked.id)

    monkeypatch.setattr(place.coordinator, "advance", advance)
    await place.coordinator.start()
    await until(lambda: looks == ["r"])
    for number in range(100):
        await place.hello(f"client-{number}")
    await settle()
    assert len(looks) == 1
    run = place.parts.runs.get("r")
    await place.deliver(run, "ann", place.update(run))
    await settle()
    assert len(looks) == 1, "nobody needs the slot of an update that has come"
    await place.coordinator.dispatch(run, ev.PlaceLost(place.clock.now_s(), BEN, "silent", permanent=False))
    await until(lambda: len(looks) == 2)
    await place.stop()


async def test_files_are_collected_when_a_run_ends_and_not_at_each_step(tmp_path: Path) -> None:
    hooks = Hooks()
    place = MemoryCoordinator(tmp_path, before=hooks)
    run = await place.new_run()
    hooks.calls.clear()
    await place.coordinator.dispatch(run, ev.RunPaused(1.0))
    await settle()
    assert "blobs.digests" not in [operation for operation, _ in hooks.calls]
    await place.coordinator.dispatch(run, ev.RunCancelled(2.0, "enough"))
    await until(lambda: "blobs.digests" in [operation for operation, _ in hooks.calls])
    await place.stop()
