"""A live run is changed by `dispatch` and by nothing else."""

import dataclasses
from pathlib import Path

import pytest
from support.coordinator_harness import small_spec
from support.memory_store import MemoryStore, Tables

from pluralllm.common.errors.tree import NotFound
from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber, RunId
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs.bell import Bell, ClientBells
from pluralllm.server.runs.live_run import LiveRun, Progress, first_state
from pluralllm.server.runs.live_runs import Runs
from pluralllm.server.runs.traffic import Traffic
from pluralllm.server.runs.troubles import Troubles
from pluralllm.server.storage.store import RunRecord


async def a_run(store: MemoryStore) -> LiveRun:
    spec = small_spec()
    record = RunRecord(RunId("r"), spec.canonical_json(), spec.sha256(), 0.0)
    first = VersionRecord(
        RunId("r"), ModelVersion(0), RoundNumber(0), Digest("d"), spec.sha256(), "", (), created_s=0.0
    )
    await store.create_run(record, first)
    return LiveRun(record, spec, layout_for(spec), first, Progress(first_state(record, spec, first), first))


async def test_dispatch_changes_a_run_and_an_event_that_changes_nothing_writes_nothing() -> None:
    store = MemoryStore(Tables())
    run = await a_run(store)
    step = await run.dispatch(store, ev.RunStarted(1.0))
    assert step is not None
    assert step.effects == ()
    assert (run.state.phase, run.sequence, run.progress.updated_s) == (Phase.WAITING, 1, 1.0)
    assert await run.dispatch(store, ev.RunStarted(2.0)) is None
    assert (run.sequence, run.progress.updated_s) == (1, 1.0)


async def test_nothing_else_can_change_a_run() -> None:
    run = await a_run(MemoryStore(Tables()))
    for name in (*(field.name for field in dataclasses.fields(run)), "state", "newest", "sequence"):
        with pytest.raises((AttributeError, TypeError)):  # TypeError for a property of a class with slots
            setattr(run, name, getattr(run, name))
    for field in dataclasses.fields(run.progress):
        with pytest.raises(AttributeError):
            setattr(run.progress, field.name, getattr(run.progress, field.name))


def test_only_dispatch_goes_round_the_lock_on_the_attributes() -> None:
    server = Path(__file__).parents[4] / "server" / "src" / "pluralllm" / "server"
    users = [path.name for path in server.rglob("*.py") if "object.__setattr__" in path.read_text(encoding="utf-8")]
    assert users == ["live_run.py"]


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


async def test_a_run_is_found_by_its_name_and_an_unknown_name_is_refused() -> None:
    run, runs = await a_run(MemoryStore(Tables())), Runs()
    runs.add(run)
    assert runs.get("r") is runs.find("r") is run
    assert runs.find("s") is None
    with pytest.raises(NotFound, match="s"):
        runs.get("s")
