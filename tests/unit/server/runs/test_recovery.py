"""A start reads all runs of the store; of ended runs it reads little, many of them at once."""

import dataclasses
import hashlib
from pathlib import Path

import pytest
from support.memory_coordinator import Hooks, MemoryCoordinator
from support.memory_store import Rows, nothing

from pluralllm.common.errors.tree import Corrupt, InvalidSpec, StorageFull
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber
from pluralllm.common.words.spec import parse_spec
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs import recovery
from pluralllm.server.runs.inbox import Inbox
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.recovery import recover, recover_all


@pytest.fixture
def place(tmp_path: Path) -> MemoryCoordinator:
    return MemoryCoordinator(tmp_path)


async def ended(place: MemoryCoordinator, name: str) -> LiveRun:
    """Returns a run that was cancelled after one of two members had delivered."""
    run = await place.collecting("ann", "ben", run_id=name)
    await place.deliver(run, "ann", place.update(run, 1), 40)
    await place.coordinator.dispatch(run, ev.RunCancelled(place.clock.now_s(), "enough"))
    return run


async def all_of(place: MemoryCoordinator) -> tuple[list[LiveRun | InvalidSpec], list[str]]:
    """Returns the runs that a start finds, and the operations of the store that it calls."""
    hooks = Hooks()
    place.before = hooks
    runs = [run async for _, run in recover_all(place.parts.store)]
    return runs, [operation for operation, _ in hooks.calls]


async def test_ended_runs_are_read_together_and_are_what_their_whole_logs_give(
    place: MemoryCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [await ended(place, name) for name in ("c", "a", "b")]
    await place.coordinator.dispatch(runs[0], ev.RunArchived(place.clock.now_s()))
    for at_once, questions in ((100, 1), (2, 2)):
        monkeypatch.setattr(recovery, "RUNS_AT_ONCE", at_once)
        found, calls = await all_of(place)
        assert calls == ["store.runs"] + ["store.settled_runs"] * questions
        for made, run in zip(found, runs, strict=True):
            assert isinstance(made, LiveRun)
            assert (made.record, made.spec, made.layout) == (run.record, run.spec, run.layout)
            assert (made.first, made.progress) == (run.first, run.progress)
            assert dict(made.examples) == dict(run.examples) == {"ann": 40}
            assert dict(made.noise) == dict(run.noise)
    for run in runs:
        place.tables.runs[run.id].checkpoint = None
    from_logs, calls = await all_of(place)
    assert [made.progress for made in from_logs if isinstance(made, LiveRun)] == [run.progress for run in runs]
    assert "store.receipts" not in calls, "nobody has asked for a receipt yet"
    assert "store.round" not in calls


async def test_the_receipts_of_an_ended_run_are_in_the_store(place: MemoryCoordinator) -> None:
    run = await ended(place, "r")
    store, ann = place.parts.store, ClientId("ann")
    kept = await store.receipt(run.id, RoundNumber(1), ann)
    assert kept is not None
    for made in (run, await recover(store, run.record)):
        hooks = Hooks()
        place.before = hooks
        assert await made.receipt(store, RoundNumber(1), ann) == kept
        assert await made.receipt(store, RoundNumber(2), ann) is None
        assert [operation for operation, _ in hooks.calls] == ["store.receipt"] * 2, "memory keeps no copy"


async def test_a_run_that_goes_on_is_read_with_its_open_round(place: MemoryCoordinator) -> None:
    over = await ended(place, "over")
    run = await place.collecting("ann", "ben", run_id="open")
    await place.deliver(run, "ann", place.update(run, 1), 40)
    recovered, calls = await all_of(place)
    assert [made.progress for made in recovered if isinstance(made, LiveRun)] == [over.progress, run.progress]
    assert run.progress.open_round is not None
    assert calls.count("store.receipts") == 1
    assert isinstance(recovered[1], LiveRun)
    place.before = hooks = Hooks()
    assert await recovered[1].receipt(place.parts.store, RoundNumber(1), ClientId("ann")) is not None
    assert hooks.calls == []


@pytest.mark.parametrize("what", ["the spec", "the checkpoint", "the newest version"])
async def test_an_ended_run_that_is_not_what_was_written_is_never_trusted(place: MemoryCoordinator, what: str) -> None:
    run = await ended(place, "r")
    tables = place.tables.runs[run.id]
    assert tables.checkpoint is not None
    if what == "the spec":
        tables.record = dataclasses.replace(run.record, spec_sha256=Digest("0" * 64))
    elif what == "the checkpoint":
        tables.checkpoint = dataclasses.replace(tables.checkpoint, content=tables.checkpoint.content + " ")
    else:
        tables.versions = Rows()
        tables.versions.put(2, dataclasses.replace(run.first, version=ModelVersion(2)))
    with pytest.raises(Corrupt):
        await all_of(place)


async def test_an_ended_run_whose_spec_this_release_does_not_allow_does_not_hide_the_others(
    place: MemoryCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("r", "s"):
        await ended(place, name)

    def strict(spec_json: bytes, what: str) -> object:
        if what == "of run r":
            raise InvalidSpec(file=what, problems="  unknown key")
        return parse_spec(spec_json, what)

    monkeypatch.setattr(recovery, "parse_spec", strict)
    recovered, _ = await all_of(place)
    assert isinstance(recovered[0], InvalidSpec)
    assert isinstance(recovered[1], LiveRun)
    assert recovered[1].id == "s"


@pytest.mark.parametrize("is_full", [False, True])
async def test_a_start_keeps_the_checkpoint_of_an_ended_run_that_another_release_has_written(
    place: MemoryCoordinator, is_full: bool
) -> None:
    run = await ended(place, "r")
    tables = place.tables.runs[run.id]
    kept, empty = tables.checkpoint, Digest(hashlib.sha256(b"{}").hexdigest())
    assert kept is not None
    tables.checkpoint = of_another = dataclasses.replace(kept, format=1, content="{}", sha256=empty)

    async def full(operation: str, _: object) -> None:
        if operation == "store.save_checkpoint":
            raise StorageFull(what="the database")

    following = MemoryCoordinator(place.folder, clock=place.clock, tables=place.tables)
    following.before = full if is_full else nothing
    await following.coordinator.start()
    assert following.parts.runs.get("r").progress == run.progress
    assert tables.checkpoint == (of_another if is_full else kept)
    _, calls = await all_of(place)
    assert ("store.events" in calls) == is_full
    assert "store.save_checkpoint" not in calls, "who only reads writes nothing"
    await following.stop()


async def test_a_start_writes_no_checkpoint_that_is_there_and_none_of_a_run_that_goes_on(
    place: MemoryCoordinator,
) -> None:
    await ended(place, "over")
    await place.collecting("ann", "ben", run_id="open")
    place.before = hooks = Hooks()
    assert [run.id async for _, run in recover_all(place.parts.store, writes=True) if isinstance(run, LiveRun)] == [
        "over",
        "open",
    ]
    assert "store.save_checkpoint" not in [operation for operation, _ in hooks.calls]


async def test_a_run_between_two_rounds_is_read_with_its_last_round(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben", rounds=2, round={"on_missed_quorum": "skip"})
    assert run.state.deadline_s is not None
    await Inbox(place.parts.store).put(run, ev.ClockTicked(run.state.deadline_s))
    checkpoint = place.tables.runs[run.id].checkpoint
    assert checkpoint is not None
    assert (run.state.phase, checkpoint.sequence) == (Phase.WAITING, run.sequence)
    (recovered,), _ = await all_of(place)
    assert isinstance(recovered, LiveRun)
    assert recovered.progress == run.progress
    assert run.progress.open_round is not None


async def test_a_run_without_its_newest_version_is_not_started(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    for seed, client in enumerate(("ann", "ben")):
        await place.deliver(run, client, place.update(run, seed), 40)
    await place.coordinator.until_averaged(run)
    versions = place.tables.runs[run.id].versions = Rows()
    versions.put(0, run.first)
    with pytest.raises(Corrupt, match="model version 1"):
        await all_of(place)
    await place.stop()
