"""A start reads a run's checkpoint and the events after it; a checkpoint that is not what was written is never trusted."""

import asyncio
import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from support.memory_coordinator import Hooks, MemoryCoordinator

from pluralllm.common.errors.tree import Corrupt, StorageFull
from pluralllm.common.words.ids import ClientId, Digest, RoundNumber, RunId
from pluralllm.common.words.noise import NoiseStatement
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs.checkpoints import CONTENT, FORMAT, content_of
from pluralllm.server.runs.inbox import Inbox
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.recovery import recover
from pluralllm.server.storage.store import Checkpoint

# Hashes of the names in a checkpoint's content, by format. Another content needs another format.
SCHEMAS = {
    1: "f620e5b4e9532436",
    2: "b100df4df6e6f2e9",
    3: "5d0667d2a5ba9ad7",
    4: "263ed351acf62548",
    5: "719daf57900e15af",
    6: "e11883fb3425aa62",
    7: "9cc894ef0ee3f020",
    8: "883a04df40665b04",
}


async def history(place: MemoryCoordinator, rounds: int, **changes: object) -> LiveRun:
    """Returns a run of which some rounds have ended: averaged ones, one without an average, and one after a revocation."""
    run = await place.collecting("ann", "ben", rounds=50, **changes)
    store, inbox = place.parts.store, Inbox(place.parts.store)
    for number in range(1, rounds + 1):
        noise = NoiseStatement(True, float(number), 1e-6, "respondent")
        for at, client in enumerate(("ann", "ben")):
            receipt = ev.Receipt(
                ClientId(client), Digest(f"{number}{client}".rjust(64, "0")), 39 + at + number, 0.3, 1.0 + at
            )
            arrived = ev.UpdateArrived(float(number), RoundNumber(run.state.round), run.state.version, receipt, noise)
            await inbox.put(run, arrived)
        average = run.progress.averaging
        assert average is not None
        digest = Digest(f"{number}".rjust(64, "f"))
        await inbox.put(run, ev.ModelAveraged(float(number), average.round, digest))
        while run.state.phase is Phase.EVALUATING:
            score = ev.Score(run.state.active[0], "g", "train", run.state.version, 0.5, 0.5, None, 9)  # type: ignore[arg-type]
            await inbox.put(run, ev.EvaluationArrived(float(number), score))
        await inbox.put(run, ev.ClientsSeen(float(number), (ClientId("ann"), ClientId("ben")), ()))
    assert (run.state.version, await store.checkpoint(run.id) is None) == (rounds, rounds == 0)
    return run


@pytest.fixture
def place(tmp_path: Path) -> MemoryCoordinator:
    return MemoryCoordinator(tmp_path)


FAIR = {"aggregation": {"weighting": "adaptive"}}


@pytest.mark.parametrize("changes", [{}, FAIR])
async def test_a_run_that_starts_from_its_checkpoint_is_the_run_that_the_whole_log_gives(
    place: MemoryCoordinator, changes: dict[str, object]
) -> None:
    run = await history(place, 3, **changes)
    late = ev.UpdateArrived(
        9.0, RoundNumber(4), run.state.version, ev.Receipt(ClientId("ann"), Digest("e" * 64), 40, 0.2, 1.0)
    )
    await Inbox(place.parts.store).put(run, late)  # after the checkpoint: its statement is weaker, there is none
    from_checkpoint = await recover(place.parts.store, run.record)
    tables = place.tables.runs[run.id]
    kept, tables.checkpoint = tables.checkpoint, None
    from_log = await recover(place.parts.store, run.record)
    assert kept is not None
    assert 0 < kept.sequence < run.sequence
    for recovered in (from_checkpoint, from_log):
        assert recovered.progress == run.progress
        assert dict(recovered.examples) == dict(run.examples) == {"ann": 40, "ben": 41}
        assert dict(recovered.noise) == dict(run.noise)
    assert run.noise[ClientId("ann")] is None
    assert run.noise[ClientId("ben")] == NoiseStatement(True, 3.0, 1e-6, "respondent")


async def test_a_start_reads_as_many_events_after_ten_rounds_as_after_two(tmp_path: Path) -> None:
    read = []
    for rounds in (2, 10):
        folder = tmp_path / str(rounds)
        folder.mkdir()
        place = MemoryCoordinator(folder)
        run = await history(place, rounds)
        store = place.parts.store
        events = store.events
        rows: list[object] = []

        async def counted(
            run: RunId, after: int, limit: int, events: object = events, rows: list[object] = rows
        ) -> object:
            found = await events(run, after, limit)  # type: ignore[operator]
            rows += found
            return found

        store.events = counted  # type: ignore[assignment,method-assign]
        hooks = Hooks()
        place.before = hooks
        await recover(store, run.record)
        assert "store.versions" not in [operation for operation, _ in hooks.calls]
        read.append(len(rows))
    assert read[0] == read[1] < 8


async def test_an_abandoned_and_an_ended_round_have_their_checkpoints(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben", rounds=2)
    await place.coordinator.dispatch(run, ev.RunCancelled(5.0, "enough"))
    checkpoint = await place.parts.store.checkpoint(run.id)
    assert checkpoint is not None
    assert checkpoint.sequence == run.sequence
    assert (await recover(place.parts.store, run.record)).progress == run.progress


async def test_an_archived_run_is_archived_after_a_start_with_its_checkpoint_and_without(
    place: MemoryCoordinator,
) -> None:
    run = await place.collecting("ann", "ben", rounds=2)
    await place.coordinator.dispatch(run, ev.RunCancelled(5.0, "enough"))
    await place.coordinator.dispatch(run, ev.RunArchived(6.0))
    tables = place.tables.runs[run.id]
    assert tables.checkpoint is not None
    assert tables.checkpoint.sequence == run.sequence, "a start need not read an event"
    for _ in range(2):
        recovered = await recover(place.parts.store, run.record)
        assert recovered.state.archived
        assert recovered.progress == run.progress
        tables.checkpoint = None


async def test_a_skipped_round_has_its_checkpoint(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben", rounds=2, round={"on_missed_quorum": "skip"})
    inbox = Inbox(place.parts.store)
    receipt = ev.Receipt(ClientId("ann"), Digest("e" * 64), 40, 0.2, 1.0)
    await inbox.put(run, ev.UpdateArrived(1.0, RoundNumber(1), run.state.version, receipt))
    assert await place.parts.store.checkpoint(run.id) is None
    assert run.state.deadline_s is not None
    await inbox.put(run, ev.ClockTicked(run.state.deadline_s))
    assert (run.state.phase, run.state.version) == (Phase.WAITING, 0)
    checkpoint = await place.parts.store.checkpoint(run.id)
    assert checkpoint is not None
    content = content_of(checkpoint)
    assert content is not None
    assert (checkpoint.sequence, content.remembered.examples) == (run.sequence, {"ann": 40})


async def test_a_checkpoint_knows_the_updates_of_its_own_transaction_and_the_run_only_durable_ones(
    place: MemoryCoordinator,
) -> None:
    run = await place.collecting("ann", "ben", rounds=2)
    inbox, full, written = Inbox(place.parts.store), [True], []

    async def hook(operation: str, about: object) -> None:
        if operation == "store.apply":
            written.append(about)
            await asyncio.sleep(0)  # the other entries come in meanwhile
            if full[0]:
                raise StorageFull(what="the database")

    place.before = hook
    receipt = ev.Receipt(ClientId("ann"), Digest("e" * 64), 40, 0.2, 1.0)
    events = (
        ev.RunPaused(1.0),
        ev.UpdateArrived(1.0, RoundNumber(1), run.state.version, receipt),
        ev.RunCancelled(2.0, "enough"),
    )
    await asyncio.gather(*(inbox.put(run, event) for event in events), return_exceptions=True)
    assert dict(run.examples) == {}
    full[0] = False
    await asyncio.gather(*(inbox.put(run, event) for event in events))
    assert len(written) == 4  # twice the first event and the two others
    checkpoint = await place.parts.store.checkpoint(run.id)
    assert checkpoint is not None
    content = content_of(checkpoint)
    assert content is not None
    assert content.remembered.examples == dict(run.examples) == {"ann": 40}


def spoilt(checkpoint: Checkpoint, **changes: object) -> Checkpoint:
    """Returns a checkpoint with other values in its content, and the hash of that content."""
    content = json.loads(checkpoint.content)
    content["state"] |= changes
    text = json.dumps(content)
    return dataclasses.replace(checkpoint, content=text, sha256=Digest(hashlib.sha256(text.encode()).hexdigest()))


@pytest.mark.parametrize("what", ["other content", "not a state", "of another run", "later than the log"])
async def test_a_checkpoint_that_was_changed_is_not_trusted(place: MemoryCoordinator, what: str) -> None:
    run = await history(place, 1)
    good = await place.parts.store.checkpoint(run.id)
    assert good is not None
    assert content_of(good) is not None
    bad = {
        "other content": dataclasses.replace(good, content=good.content.replace("ann", "eve")),
        "not a state": spoilt(good, phase="asleep"),
        "of another run": spoilt(good, id="s"),
        "later than the log": dataclasses.replace(good, sequence=run.sequence + 1),
    }
    place.tables.runs[run.id].checkpoint = bad[what]
    with pytest.raises(Corrupt):
        await recover(place.parts.store, run.record)


async def test_a_checkpoint_of_another_format_is_left_out_and_the_log_is_replayed(place: MemoryCoordinator) -> None:
    run = await history(place, 2)
    good = await place.parts.store.checkpoint(run.id)
    assert good is not None
    text = "{}"
    digest = Digest(hashlib.sha256(text.encode()).hexdigest())
    other = dataclasses.replace(good, format=FORMAT + 1, content=text, sha256=digest)
    place.tables.runs[run.id].checkpoint = other
    assert content_of(other) is None
    assert (await recover(place.parts.store, run.record)).progress == run.progress


def test_a_changed_content_has_a_new_format() -> None:
    schema = CONTENT.json_schema()
    parts = {**schema["$defs"], "Content": schema}
    names = {part: sorted(facts.get("properties", facts.get("enum", ()))) for part, facts in sorted(parts.items())}
    assert SCHEMAS[FORMAT] == hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]
