"""The coordinator follows a private round: messages with their events, one lease from keys to reveal, nothing left at the end."""

import asyncio
import dataclasses
from pathlib import Path

import pytest
from support.memory_blobs import MemoryBlobs
from support.memory_coordinator import KnownKeys, MemoryCoordinator
from support.memory_store import MemoryMembership
from support.private_round import NAMES, ONE, body_of, keying, send, sha256
from support.run_states import change_state

from pluralllm.common.errors.private_rounds import DealtWrongly
from pluralllm.common.errors.tree import DigestMismatch, StoreFailed
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.words.ids import ClientId, Digest, RoundNumber
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.aggregation.next_version import Draft, NextVersion
from pluralllm.server.commands.verify import verify_state
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs.inbox import Inbox
from pluralllm.server.runs.leases import Lease
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.recovery import recover
from pluralllm.server.storage.retention import kept_blobs
from pluralllm.server.storage.store import RoundOutcome

ANN, BEN, CAT, DAN = NAMES


async def unmasking(place: MemoryCoordinator) -> LiveRun:
    """Returns a run that lacks one reveal."""
    run = await keying(place)
    for step in (ev.RoundStep.KEYS, ev.RoundStep.SHARES, ev.RoundStep.UPDATE):
        await send(place, run, step, *NAMES)
    await send(place, run, ev.RoundStep.CONFIRMATION, ANN, BEN, CAT)
    await send(place, run, ev.RoundStep.REVEAL, BEN, CAT)
    assert run.state.phase is Phase.UNMASKING
    return run


@pytest.fixture
def place(tmp_path: Path) -> MemoryCoordinator:
    return MemoryCoordinator(tmp_path)


async def test_updates_of_private_rounds_are_numbers_of_the_ring(place: MemoryCoordinator) -> None:
    assert (await keying(place)).update_format.encoding == "ring32"


async def test_a_member_has_one_lease_from_its_keys_to_its_reveal_and_hears_of_each_step(
    place: MemoryCoordinator,
) -> None:
    run = await keying(place)
    leases, bells = place.parts.leases, place.parts.client_bells
    lease, rings = leases.of(ANN), 0
    assert isinstance(lease, Lease)
    for step, phase in (
        (ev.RoundStep.KEYS, Phase.SHARING),
        (ev.RoundStep.SHARES, Phase.COLLECTING),
        (ev.RoundStep.UPDATE, Phase.CONFIRMING),
    ):
        await send(place, run, step, *NAMES[:3])
        assert all(leases.is_held(run.task_name(client)) for client in NAMES), "who has sent it waits for the next step"
        rings = bells.of(ANN).rings
        await send(place, run, step, DAN)
        assert run.state.phase is phase
        assert bells.of(ANN).rings == rings + 1
        assert leases.of(ANN) is lease
    await send(place, run, ev.RoundStep.CONFIRMATION, ANN, BEN, CAT)
    assert (run.state.phase, bells.of(DAN).rings) == (Phase.UNMASKING, bells.of(ANN).rings)
    assert leases.of(DAN) is not None
    await place.coordinator.dispatch(run, ev.RunCancelled(9.0, "enough"))
    assert leases.of(ANN) is None


async def test_a_member_that_was_silent_gets_its_task_again_in_the_same_round(place: MemoryCoordinator) -> None:
    run = await unmasking(place)
    place.coordinator.release(ANN)
    await place.coordinator.dispatch(run, ev.PlaceLost(place.clock.now_s(), ANN, "lease expired", permanent=False))
    assert place.parts.leases.of(ANN) is None
    await place.look(run)
    assert place.parts.leases.is_held(run.task_name(ANN))


async def test_messages_are_stored_with_their_events_and_deleted_with_the_round(place: MemoryCoordinator) -> None:
    run, store = await unmasking(place), place.parts.store
    for step in (ev.RoundStep.KEYS, ev.RoundStep.SHARES, ev.RoundStep.UPDATE):
        rows = await store.round_messages(run.id, ONE, step)
        assert [(row.client, row.body) for row in rows] == [(client, body_of(step, client)) for client in NAMES]
        assert all(row.sha256 == sha256(row.body) for row in rows)
    events = await store.events(run.id, 0, 1000)
    assert not [event for event in events if "of ann" in str(event.facts)], "the log holds digests only"
    for after in (await recover(store, run.record), run):
        assert after.state == run.state
    await place.coordinator.dispatch(run, ev.RunCancelled(9.0, "enough"))
    assert await store.round_messages(run.id) == []
    assert (await recover(store, run.record)).progress == run.progress


async def test_the_version_of_a_private_round_names_its_transcript_which_is_kept(place: MemoryCoordinator) -> None:
    run, store = await unmasking(place), place.parts.store
    inbox = Inbox(store)  # without the coordinator, which would look for the updates
    body, transcript = body_of(ev.RoundStep.REVEAL, ANN), Digest("7" * 64)
    await inbox.put(run, ev.RevealArrived(5.0, ONE, ANN, sha256(body)), body)
    assert run.progress.averaging is not None
    assert (await recover(store, run.record)).progress == run.progress
    assert len(await store.round_messages(run.id, ONE, ev.RoundStep.REVEAL)) == 3
    await inbox.put(run, ev.ModelAveraged(6.0, ONE, Digest("8" * 64), transcript=transcript))
    assert (run.newest.transcript, await store.round_messages(run.id)) == (transcript, [])
    assert transcript in await kept_blobs(store, 1)
    assert transcript not in await kept_blobs(store, 0)
    assert (await recover(store, run.record)).progress == run.progress


async def test_a_message_that_is_not_the_one_of_its_event_is_not_taken(place: MemoryCoordinator) -> None:
    run = await keying(place)
    before = run.state
    with pytest.raises(DigestMismatch):
        await place.coordinator.dispatch(run, ev.KeysArrived(5.0, ONE, ANN, sha256(b"keys")), b"other keys")
    assert run.state is before
    assert await place.parts.store.round_messages(run.id) == []


async def test_a_message_that_cannot_be_written_is_not_acknowledged_and_comes_again(place: MemoryCoordinator) -> None:
    run, broken = await keying(place), [True]

    async def before(operation: str, about: object) -> None:
        if broken[0] and operation == "store.apply":
            raise StoreFailed(problem="the disk is full")

    place.before = before
    with pytest.raises(StoreFailed):
        await send(place, run, ev.RoundStep.KEYS, ANN)
    assert run.state.keyed == ()
    broken[0] = False
    await send(place, run, ev.RoundStep.KEYS, ANN, ANN)
    assert [row.client for row in await place.parts.store.round_messages(run.id)] == [ANN]


async def test_verify_finds_a_message_that_was_changed_lost_or_left_behind(
    place: MemoryCoordinator, tmp_path: Path
) -> None:
    run = await keying(place)
    await send(place, run, ev.RoundStep.KEYS, ANN, BEN)
    membership, blobs = MemoryMembership(place.tables), place.parts.blobs
    assert isinstance(blobs, MemoryBlobs)
    messages = place.tables.runs[run.id].messages

    async def replay_problems() -> list[str]:
        report = await verify_state(place.parts.store, membership, blobs, tmp_path)
        return [finding.problem for finding in report.findings if finding.invariant == 6]

    assert await replay_problems() == []
    key = (ONE, ev.RoundStep.KEYS, ANN)
    row = messages[key]
    messages[key] = dataclasses.replace(row, body=b"other keys")
    assert [problem[:26] for problem in await replay_problems()] == ["message (1, <RoundStep.KEY"]
    del messages[key]
    assert len(await replay_problems()) == 1
    messages[key] = row
    await place.coordinator.dispatch(run, ev.RunCancelled(9.0, "enough"))
    assert await replay_problems() == []
    place.tables.runs[run.id].messages[key] = row
    assert len(await replay_problems()) == 1


async def test_only_who_trains_must_know_private_rounds(place: MemoryCoordinator) -> None:
    run = await place.new_run(
        private_rounds={}, round={"min_clients": 4, "target_clients": 5}, aggregation={"max_examples": 100}
    )
    await place.hello("eve", role=GroupRole.HELD_OUT, is_ready=False)
    await place.hello(ANN, is_ready=False)
    await place.hello(BEN)
    await place.look(run)
    assert run.state.roster == (BEN, "eve")
    change_state(run, phase=Phase.EVALUATING)
    await place.look(run)
    assert run.state.cohort == (ANN, BEN, "eve"), "an evaluation has no such steps"
    plain = await place.new_run("plain")
    await place.hello("gus", is_ready=False)
    await place.look(plain)
    assert plain.state.roster == ("gus",), "nor has a plain round"


async def test_a_client_whose_key_is_not_on_record_is_in_no_private_round(
    place: MemoryCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KnownKeys, "peer_key", lambda _, name: None if name == ANN else b"key")
    run = await place.new_run(
        private_rounds={}, round={"min_clients": 4, "target_clients": 4}, aggregation={"max_examples": 100}
    )
    await place.hello(ANN)
    await place.hello(BEN)
    await place.look(run)
    assert run.state.roster == (BEN,)


@pytest.mark.parametrize("before", ["keys", "the mean"])
async def test_a_round_that_ends_is_forgotten(
    place: MemoryCoordinator, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    run = await (keying(place) if before == "keys" else unmasking(place))
    forgotten: list[tuple[str, int]] = []
    monkeypatch.setattr(place.parts.open_rounds, "forget", lambda *about: forgotten.append(about))
    await place.coordinator.dispatch(run, ev.RunPaused(1.0))
    assert forgotten == []
    await place.coordinator.dispatch(run, ev.RunCancelled(1.0, "enough"))
    assert forgotten == [(run.id, 1)]


async def test_a_private_round_publishes_its_sum_with_its_transcript(
    place: MemoryCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await unmasking(place)
    drafts: list[Draft] = []
    for name in ("version", "transcript"):
        path = place.folder / name
        path.write_bytes(name.encode())
        drafts.append(Draft(path, manifest_of(path)))

    async def material(_: LiveRun) -> None:
        return None

    async def sum_of(*_: object) -> NextVersion:
        return NextVersion((drafts[0],), transcript=drafts[1], tail=(7,) * 64)

    monkeypatch.setattr(place.parts.open_rounds, "material", material)
    monkeypatch.setattr("pluralllm.server.runs.coordinator.write_private", sum_of)
    await send(place, run, ev.RoundStep.REVEAL, ANN)
    await asyncio.wait([asyncio.create_task(place.coordinator.until_averaged(run))], timeout=10)
    version, transcript = (draft.manifest.digest for draft in drafts)
    assert (run.newest.version, run.newest.digest, run.newest.transcript) == (1, version, transcript)
    assert await place.parts.blobs.exists(transcript)
    await place.stop()


async def test_a_dealer_whose_shares_do_not_fit_ends_the_round_with_its_name(
    place: MemoryCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await unmasking(place)

    async def material(asked: LiveRun) -> str:
        return f"of {asked.id}"

    async def sum_of(_: object, __: object, ___: object, summed: str, draft: Path) -> None:
        assert (summed, draft.name) == ("of r", "r-1.safetensors")
        raise DealtWrongly(dealer="ben", problem="no polynomial")

    monkeypatch.setattr(place.parts.open_rounds, "material", material)
    monkeypatch.setattr("pluralllm.server.runs.coordinator.write_private", sum_of)
    await send(place, run, ev.RoundStep.REVEAL, ANN)
    await asyncio.wait([asyncio.create_task(place.coordinator.until_averaged(run))], timeout=10)
    assert (run.state.phase, run.state.version) == (Phase.WAITING, 0)
    record = await place.parts.store.round(run.id, ONE)
    assert record is not None
    assert record.outcome is RoundOutcome.ABANDONED
    assert "ben" in record.reason
    await place.stop()


async def test_in_a_closing_round_groups_that_are_evaluated_only_must_know_private_rounds_as_well(
    place: MemoryCoordinator,
) -> None:
    run = await place.new_run(
        private_rounds={}, round={"min_clients": 4, "target_clients": 4}, aggregation={"max_examples": 100}
    )
    change_state(run, closes=True, round=RoundNumber(run.state.rounds), evaluated=run.state.version)
    await place.hello("eve", role=GroupRole.HELD_OUT, is_ready=False)
    await place.hello("fay", role=GroupRole.HELD_OUT)
    for client in NAMES:
        await place.hello(client)
    await place.look(run)
    assert (run.state.is_closing, run.state.cohort) == (True, (*NAMES, "fay"))
    lost = ev.PlaceLost(place.clock.now_s(), ClientId("fay"), "no key", permanent=True)
    await place.coordinator.dispatch(run, lost)
    await place.look(run)
    assert (run.state.phase, run.state.free_slots) == (Phase.KEYING, 1)
    assert "eve" not in run.state.cohort, "the free slot is not for eve either"
