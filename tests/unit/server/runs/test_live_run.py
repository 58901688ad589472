"""A live run is changed by the inbox and by nothing else."""

import asyncio
import dataclasses
import errno
from pathlib import Path

import pytest
from support.bare_run import bare_run
from support.coordinator_harness import small_spec
from support.memory_coordinator import Hooks, MemoryCoordinator
from support.memory_store import MemoryStore, Rows, Tables
from support.run_states import with_state

from pluralllm.common.errors.tree import Corrupt, NotFound, StorageFull
from pluralllm.common.predictor.first_version import write_first_version
from pluralllm.common.weights.layout import rewards_layout
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.names import TaskKind, TaskName
from pluralllm.common.words.noise import NoiseStatement
from pluralllm.common.words.reward_weights import RewardRun
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs.bell import Bell, ClientBells
from pluralllm.server.runs.inbox import Inbox
from pluralllm.server.runs.live_run import LiveRun, Progress, first_state
from pluralllm.server.runs.live_runs import Runs
from pluralllm.server.runs.recovery import recover
from pluralllm.server.runs.traffic import Traffic
from pluralllm.server.runs.troubles import Troubles
from pluralllm.server.storage.store import RunRecord


async def a_run(store: MemoryStore) -> LiveRun:
    return await bare_run(store, small_spec())


async def test_dispatch_changes_a_run_and_an_event_that_changes_nothing_writes_nothing() -> None:
    store = MemoryStore(Tables())
    run = await a_run(store)
    step = await Inbox(store).put(run, ev.RunStarted(1.0))
    assert step is not None
    assert step.effects == ()
    assert (run.state.phase, run.sequence, run.progress.updated_s) == (Phase.WAITING, 1, 1.0)
    assert await Inbox(store).put(run, ev.RunStarted(2.0)) is None
    assert (run.sequence, run.progress.updated_s) == (1, 1.0)


# Recovery


async def test_a_run_recovers_its_state_its_rows_and_the_examples_of_every_update(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)
    run = await place.collecting("ann", "ben", rounds=5)
    for client, examples, seed in (("ann", 40, 1), ("ben", 30, 2)):
        await place.deliver(run, client, place.update(run, seed), examples)
    await place.coordinator.until_averaged(run)
    await place.coordinator.dispatch(run, ev.MemberRevoked(place.clock.now_s(), ClientId("ben")))
    await place.hello("cat")
    await place.look(run)
    await place.deliver(run, "cat", place.update(run, 3), 20)  # its first update of the run, in a round that is open
    await place.stop()
    assert dict(run.examples) == {"ann": 40, "ben": 30, "cat": 20}
    recovered = await recover(place.parts.store, run.record)
    assert recovered.progress.averaging is None
    assert recovered.state == run.state
    assert recovered.progress == run.progress
    assert dict(recovered.examples) == dict(run.examples)
    assert (recovered.first, recovered.newest.version) == (run.first, 1)


async def test_a_run_shows_the_weakest_statement_about_noise_with_which_each_client_has_sent_an_update(
    tmp_path: Path,
) -> None:
    place = MemoryCoordinator(tmp_path)
    run = await place.collecting("ann", "ben", rounds=5, round={"min_clients": 2})
    eight, two, nothing = (NoiseStatement(True, number, 1e-6, "respondent") for number in (8.0, 2.0, 1.0))
    for number, noises in enumerate([(two, two), (eight, None), (two, two)]):
        for seed, (client, noise) in enumerate(zip(("ann", "ben"), noises, strict=True)):
            await place.hello(client, noise=noise)
            await place.look(run)
            await place.deliver(run, client, place.update(run, 10 * number + seed), 40)
        await place.coordinator.until_averaged(run)
        await place.look(run)
    assert dict(run.noise) == {"ann": eight, "ben": None}
    assert dict((await recover(place.parts.store, run.record)).noise) == dict(run.noise)
    await place.hello("ann", noise=nothing)
    await place.hello("cat", noise=nothing)
    status = place.parts.status.of(run)
    assert {person.client: person.noise for person in status.participants} == {
        "ann": eight,
        "ben": None,
        "cat": nothing,
    }
    await place.stop()


@pytest.mark.parametrize("page", [1, 2, 3])
async def test_the_log_of_events_is_read_page_by_page(monkeypatch: pytest.MonkeyPatch, page: int) -> None:
    monkeypatch.setattr("pluralllm.server.runs.recovery.REPLAY_PAGE", page)
    store = MemoryStore(Tables())
    run = await a_run(store)
    for event in (ev.RunStarted(1.0), ev.RunPaused(2.0), ev.RunResumed(3.0)):
        await Inbox(store).put(run, event)
    recovered = await recover(store, run.record)
    assert (recovered.state, recovered.progress.updated_s, recovered.sequence) == (run.state, 3.0, 3)


async def test_a_stored_spec_whose_hash_is_another_is_refused() -> None:
    store = MemoryStore(Tables())
    run = await a_run(store)
    with pytest.raises(Corrupt, match="the stored spec of run r"):
        await recover(store, dataclasses.replace(run.record, spec_sha256=Digest("0" * 64)))


async def test_an_event_that_cannot_be_stored_changes_nothing() -> None:
    hooks = Hooks()
    store = MemoryStore(Tables(), hooks)
    run = await a_run(store)
    before = run.progress
    with hooks.failing("store.apply", StorageFull(what="the database")), pytest.raises(StorageFull):
        await Inbox(store).put(run, ev.RunStarted(1.0))
    assert run.progress is before


async def test_events_at_the_same_time_are_written_one_after_another() -> None:
    going_on = asyncio.Event()

    async def wait(operation: str, about: object) -> None:
        if operation == "store.apply":
            await going_on.wait()

    store = MemoryStore(Tables(), wait)
    run = await a_run(store)
    dispatches = [
        asyncio.create_task(Inbox(store).put(run, event)) for event in (ev.RunStarted(1.0), ev.RunPaused(2.0))
    ]
    await asyncio.sleep(0)
    going_on.set()
    await asyncio.gather(*dispatches)
    assert (run.sequence, run.state.paused) == (2, True)


async def test_an_averaging_that_had_not_ended_is_found_again(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)
    run = await place.collecting("ann", "ben")
    store, steps = place.parts.store, []
    for client in ("ann", "ben"):
        receipt = ev.Receipt(ClientId(client), Digest(client), 10, None, 1.0)
        steps.append(await Inbox(store).put(run, ev.UpdateArrived(1.0, run.state.round, run.state.version, receipt)))
    assert steps[-1] is not None
    average = steps[-1].effects[-1]
    assert isinstance(average, ev.Average)
    assert run.progress.averaging == (await recover(store, run.record)).progress.averaging == average
    await Inbox(store).put(run, ev.RunCancelled(2.0, "enough"))
    assert run.progress.averaging is (await recover(store, run.record)).progress.averaging is None


def test_a_first_version_that_a_full_disk_refuses_is_an_error_of_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    assert write_first_version(tmp_path / "v0", small_spec()).size_bytes == (tmp_path / "v0").stat().st_size
    monkeypatch.setattr("pluralllm.common.predictor.first_version.write_weights", full)
    with pytest.raises(StorageFull):
        write_first_version(tmp_path / "v0", small_spec())


async def test_tasks_are_named_for_the_work_of_the_phase() -> None:
    run = await a_run(MemoryStore(Tables()))
    for phase, kind in ((Phase.COLLECTING, TaskKind.TRAIN), (Phase.EVALUATING, TaskKind.EVALUATE)):
        at = with_state(run, phase=phase, round=RoundNumber(3))
        assert at.task_name(ClientId("ann")) == TaskName(RunId("r"), RoundNumber(3), kind, ClientId("ann"))


async def test_the_state_of_a_run_follows_from_its_spec() -> None:
    store = MemoryStore(Tables())
    run = await a_run(store)
    assert (run.work_kind, run.base, run.is_over, run.progress.updated_s) == (TaskKind.TRAIN, run.first, False, 0.0)
    groups = small_spec(groups={"train": ["A", "B"], "held_out": ["C"]})
    assert first_state(run.record, groups, run.first).named_groups == 3
    formats = [run.spec.model_copy(update={"format": f"pluralllm.run/{number}"}) for number in (2, 3)]
    assert [first_state(run.record, spec, run.first).gives_up_small_sums for spec in formats] == [False, True]
    rewards = groups.model_copy(update={"rewards": RewardRun(source="runs/s/models/0", model_digest="0" * 64)})
    assert rewards.rewards is not None
    assert first_state(run.record, rewards, run.first).rewards == rewards.rewards.aggregation
    record = RunRecord(RunId("s"), b"", Digest(""), 0.0)
    state = dataclasses.replace(first_state(record, rewards, run.first), candidates=7)
    later = dataclasses.replace(run.first, version=ModelVersion(1))
    rewarding = LiveRun(record, rewards, run.layout, run.first, Progress(state, later))
    assert (rewarding.work_kind, rewarding.base) == (TaskKind.REWARD, run.first)
    assert rewarding.update_format.layout == rewards_layout(7)
    assert run.update_format.layout == run.layout
    training = dataclasses.replace(run, progress=Progress(state, later))
    assert training.base is later


async def test_nothing_else_can_change_a_run() -> None:
    run = await a_run(MemoryStore(Tables()))
    for name in (*(field.name for field in dataclasses.fields(run)), "state", "newest", "sequence"):
        with pytest.raises((AttributeError, TypeError)):  # TypeError for a property of a class with slots
            setattr(run, name, getattr(run, name))
    for field in dataclasses.fields(run.progress):
        with pytest.raises(AttributeError):
            setattr(run.progress, field.name, getattr(run.progress, field.name))


def test_only_the_inbox_lets_a_run_take_a_step() -> None:
    server = Path(__file__).parents[4] / "server" / "src" / "pluralllm" / "server"
    users = [path.name for path in server.rglob("*.py") if "object.__setattr__" in path.read_text(encoding="utf-8")]
    assert users == ["live_run.py"]
    takers = [path.name for path in server.rglob("*.py") if ".run.take(" in path.read_text(encoding="utf-8")]
    assert takers == ["inbox.py"]


def test_traffic_is_counted_by_run_and_in_all() -> None:
    traffic = Traffic()
    traffic.count_received(RunId("a"), 10)
    traffic.count_received(RunId("b"), 5)
    traffic.count_sent(RunId("a"), 7)
    assert (traffic.received_bytes(RunId("a")), traffic.sent_bytes(RunId("a"))) == (10, 7)
    assert traffic.sent_bytes(RunId("b")) == 0
    assert traffic.totals() == (15, 7)


def test_a_trouble_is_news_until_it_is_known_and_gone_once_the_run_goes_on() -> None:
    troubles = Troubles()
    assert troubles.note(RunId("a"), "no space")
    assert not troubles.note(RunId("a"), "no space")
    assert troubles.of(RunId("a")) == "no space"
    troubles.clear(RunId("a"))
    assert troubles.of(RunId("a")) == ""


async def test_a_closed_bell_has_rung_for_everybody_and_those_to_come_see_that_it_is_closed() -> None:
    bells, bell = ClientBells(), Bell()
    before = bells.of(ClientId("ann"))
    heard = before.rings
    bells.close()
    bell.close()
    await before.wait(heard, 60)  # returns at once
    assert before.closed
    assert bells.of(ClientId("ben")).closed
    assert bell.closed


async def test_a_ring_wakes_all_who_wait_and_a_wait_ends_by_itself() -> None:
    bell = Bell()
    heard = bell.rings
    waiting = [asyncio.create_task(bell.wait(heard, 60)) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(wait.done() for wait in waiting)
    bell.ring()
    await asyncio.wait_for(asyncio.gather(*waiting), 1)
    await bell.wait(heard, 60)  # it has rung since
    await asyncio.wait_for(bell.wait(bell.rings, 0.001), 1)
    gone = asyncio.create_task(bell.wait(bell.rings, 60))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert gone.cancelled()
    assert not bell._waiting, "nobody is kept who waits no more"


async def test_the_format_of_updates_is_computed_once_a_round(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)
    run = await place.collecting("ann", "ben")
    assert run.update_format is run.update_format


async def test_a_run_is_found_by_its_name_and_an_unknown_name_is_refused() -> None:
    run, runs = await a_run(MemoryStore(Tables())), Runs()
    runs.add(run)
    assert runs.get("r") is runs.find("r") is run
    assert runs.find("s") is None
    with pytest.raises(NotFound, match="s"):
        runs.get("s")


async def test_receipts_of_the_open_round_are_in_memory_and_those_before_in_the_store(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)
    run = await place.collecting("ann", "ben", rounds=5)
    store, ann, ben = place.parts.store, ClientId("ann"), ClientId("ben")
    await place.deliver(run, "ann", place.update(run, 1), 40)
    one, two = RoundNumber(1), RoundNumber(2)
    kept = await run.receipt(store, one, ann)
    assert kept is not None
    assert kept == await store.receipt(run.id, one, ann)
    assert await (await recover(store, run.record)).receipt(store, one, ann) == kept
    assert await run.receipt(store, two, ann) is None
    await place.coordinator.dispatch(run, ev.MemberRevoked(place.clock.now_s(), ann))
    assert await run.receipt(store, one, ann) is None
    await place.hello("cat")
    await place.look(run)
    for client, seed in (("ben", 2), ("cat", 3)):
        await place.deliver(run, client, place.update(run, seed), 30)
    await place.coordinator.until_averaged(run)
    await place.look(run)
    await place.stop()
    assert run.state.round == two
    assert await run.receipt(store, two, ben) is None, "the round before is not the open one"
    assert (await run.receipt(store, one, ben)) == await store.receipt(run.id, one, ben) is not None


async def test_a_run_whose_versions_are_lost_is_named_when_it_is_recovered() -> None:
    store = MemoryStore(Tables())
    run = await a_run(store)
    store._tables.runs[RunId("r")].versions = Rows()
    with pytest.raises(Corrupt, match="its first model version"):
        await recover(store, run.record)
