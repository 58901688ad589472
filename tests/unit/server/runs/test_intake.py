"""Updates are announced, sent and committed by the clients that have the right to, and a good update is lost by nothing."""

import asyncio
import errno
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs
from support.memory_coordinator import Hooks, MemoryCoordinator, Update, settle, until

from pluralllm.common.errors.membership import IdentityMismatch
from pluralllm.common.errors.tree import (
    AlreadyCommitted,
    ChunksMissing,
    InvalidArgument,
    LeaseLost,
    NormTooLarge,
    NotFound,
    OverLimit,
    PluralError,
    RoundClosed,
    SpecMismatch,
    StorageFull,
    WrongBase,
    WrongLayout,
)
from pluralllm.common.predictor.metrics import MAX_JS_DISTANCE
from pluralllm.common.rewards.rollout_batch import Candidates
from pluralllm.common.words.ids import ClientId, RoundNumber
from pluralllm.common.words.names import TaskKind, TaskName
from pluralllm.common.words.noise import NoiseStatement
from pluralllm.server.process.instruments import UPDATES_REFUSED
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs.intake import TEND_S, parse_task, upload_key
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.troubles import MAX_PROBLEM
from pluralllm.server.storage.store import ReceiptRecord

ANN, BEN = ClientId("ann"), ClientId("ben")


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[MemoryCoordinator]:
    process = MemoryCoordinator(tmp_path)
    yield process
    await process.stop()


def refusals(run: LiveRun) -> list[tuple[str, str]]:
    return [(refusal.client, refusal.reason) for refusal in run.state.refusals]


async def begin(place: MemoryCoordinator, run: LiveRun, update: Update, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "task": run.task_name(ANN),
        "spec_sha256": run.record.spec_sha256,
        "base_digest": run.base.digest,
        "manifest": update.manifest,
        "examples": 50,
        "metrics": {},
    }
    limit = changes.pop("max_examples", None)
    return await place.intake.begin(*{**arguments, **changes}.values(), max_examples=limit)


# Announcements


async def test_an_update_that_fits_is_announced_and_all_its_chunks_are_missing(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    update = place.update(run)
    assert await begin(place, run, update) == frozenset(range(update.manifest.chunks))
    assert await begin(place, run, update) == frozenset(range(update.manifest.chunks)), "a client may repeat the call"
    assert refusals(run) == []


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"spec_sha256": "0" * 64}, SpecMismatch),
        ({"base_digest": "0" * 64}, WrongBase),
        ({"examples": 0}, InvalidArgument),
        ({"examples": 51}, InvalidArgument),
        ({"metrics": {"base_distance": math.nextafter(MAX_JS_DISTANCE, 1)}}, InvalidArgument),
        ({"metrics": {"base_distance": -1e-9}}, InvalidArgument),
        ({"metrics": {"base_distance": math.nan}}, InvalidArgument),
    ],
)
async def test_an_announcement_that_does_not_fit_is_refused_and_on_record(
    place: MemoryCoordinator, changes: dict[str, Any], refusal: type[PluralError]
) -> None:
    run = await place.collecting("ann", "ben")
    with pytest.raises(refusal) as refused:
        await begin(place, run, place.update(run), **changes)
    assert refusals(run) == [("ann", refused.value.reason)]
    assert place.parts.refusals.of(run.id) == {ANN: 1}
    with pytest.raises(ChunksMissing):
        await place.intake.missing(run.task_name(ANN))


@pytest.mark.parametrize("distance", [0.0, MAX_JS_DISTANCE])
async def test_the_bounds_of_a_distance_and_of_the_examples_are_allowed(
    place: MemoryCoordinator, distance: float
) -> None:
    run = await place.collecting("ann", "ben")
    update = place.update(run)
    assert await begin(place, run, update, metrics={"base_distance": distance}, examples=1)
    assert await begin(place, run, update, examples=50)


async def test_an_update_of_another_size_is_refused(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    update = place.update(run)
    manifest = update.manifest
    for size in (manifest.size_bytes - 1, manifest.size_bytes + 1):
        other = type(manifest)(manifest.digest, size, manifest.chunk_hashes)
        with pytest.raises(
            WrongLayout, match=f"its size is {size} bytes, that of an update of this run {manifest.size_bytes}"
        ):
            await begin(place, run, update, manifest=other)


async def test_examples_are_the_same_in_every_update_of_a_client(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    update = place.update(run)
    await begin(place, run, update, examples=40)
    await place.send(run, "ann", update)
    await place.intake.commit(run.task_name(ANN), update.manifest.digest)
    await place.deliver(run, "ben", place.update(run, 2))
    await place.coordinator.until_averaged(run)
    await place.look(run)
    assert run.state.round == 2
    for examples in (39, 41):
        with pytest.raises(InvalidArgument, match=f"is {examples}, must be 40 as in this client's first update"):
            await begin(place, run, update, examples=examples)
    await place.hello("ann", questions=30)  # its file has changed: the first number stays the weight
    assert await begin(place, run, update, examples=40)


async def test_the_limit_of_a_membership_bounds_the_examples(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    update = place.update(run)
    assert await begin(place, run, update, examples=40, max_examples=40)
    with pytest.raises(OverLimit) as refused:
        await begin(place, run, update, examples=41, max_examples=40)
    assert (refused.value.got, refused.value.limit) == (41, 40)


async def test_after_a_restart_the_number_of_questions_comes_from_the_database(place: MemoryCoordinator) -> None:
    await place.collecting("ann", "ben")
    following = await place.next_process()
    run = following.parts.runs.get("r")
    update = following.update(run)
    with pytest.raises(InvalidArgument, match="at most 50"):
        await begin(following, run, update, examples=51)
    assert await begin(following, run, update, examples=50)
    following.tables.clients.clear()
    without = await following.next_process()
    with pytest.raises(InvalidArgument, match="at most 0"):
        await begin(without, without.parts.runs.get("r"), update, examples=50)


async def test_a_client_without_a_slot_may_neither_announce_nor_send(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    update, round_number = place.update(run), RoundNumber(run.state.round)
    cat = run.task_name(ClientId("cat"))
    evaluation = TaskName(run.id, round_number, TaskKind.EVALUATE, ANN)
    for task, refusal in (
        (cat, LeaseLost),
        (evaluation, LeaseLost),
        (TaskName(run.id, RoundNumber(round_number + 1), TaskKind.TRAIN, ANN), RoundClosed),
        (TaskName(run.id, RoundNumber(round_number - 1), TaskKind.TRAIN, ANN), RoundClosed),
    ):
        with pytest.raises(refusal):
            await begin(place, run, update, task=task)
        with pytest.raises(refusal):
            await place.intake.put(task, update.manifest.digest, 0, update.chunk(0))
    assert refusals(run) == []


async def test_a_client_whose_lease_has_expired_may_still_deliver(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    place.coordinator.release(ANN)
    await place.coordinator.dispatch(run, ev.PlaceLost(place.clock.now_s(), ANN, "silent", permanent=False))
    assert isinstance(await place.deliver(run, "ann", place.update(run)), ReceiptRecord)


async def test_an_announcement_and_each_chunk_renew_the_lease(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    update, leases = place.update(run), place.parts.leases
    for step in (place.announce(run, "ann", update), place.send(run, "ann", update)):
        place.clock.advance(3)
        await step
        lease = leases.of(ANN)
        assert lease is not None
        assert lease.expires_s == place.clock.now_s() + leases.duration_s


async def test_only_two_metrics_are_kept_and_logged(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    with capture_logs() as logs:
        receipt = await place.deliver(run, "ann", place.update(run), loss=1.5, base_distance=0.25, secret=7.0)
    (accepted,) = [entry for entry in logs if entry["event"] == "update.accepted"]
    assert {key: accepted[key] for key in accepted if key.startswith("metric_")} == {
        "metric_loss": 1.5,
        "metric_base_distance": 0.25,
    }
    assert receipt.receipt.distance == 0.25
    assert receipt.receipt.norm == pytest.approx(accepted["delta_l2"])


# Chunks


async def test_chunks_of_an_update_that_is_not_announced_are_refused(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    update, task = place.update(run), run.task_name(ANN)
    with pytest.raises(ChunksMissing):
        await place.intake.put(task, update.manifest.digest, 0, update.chunk(0))
    await place.announce(run, "ann", update)
    with pytest.raises(ChunksMissing) as refused:
        await place.intake.put(task, "0" * 64, 0, update.chunk(0))
    assert refused.value.missing == update.manifest.chunks
    await place.intake.put(task, update.manifest.digest, 0, update.chunk(0))
    assert await place.intake.missing(task) == frozenset(range(1, update.manifest.chunks))
    assert place.parts.traffic.received_bytes(run.id) == len(update.chunk(0))


async def test_an_excluded_client_may_put_no_more_chunks_and_may_not_commit(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    update, task = place.update(run), run.task_name(ANN)
    await place.announce(run, "ann", update)
    await place.coordinator.dispatch(run, ev.PlaceLost(place.clock.now_s(), ANN, "cannot", permanent=True))
    with pytest.raises(LeaseLost):
        await place.intake.put(task, update.manifest.digest, 0, update.chunk(0))
    assert place.parts.traffic.received_bytes(run.id) == 0
    with pytest.raises(LeaseLost):
        await place.announce(run, "ann", update)
    with pytest.raises(LeaseLost):
        await place.intake.commit(task, update.manifest.digest)


# Commits


async def test_a_committed_update_has_one_receipt_however_often_it_is_asked_for(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    update, task = place.update(run), run.task_name(ANN)
    receipt = await place.deliver(run, "ann", update)
    assert receipt.receipt == ev.Receipt(ANN, update.manifest.digest, 50, None, receipt.receipt.norm)
    assert await place.intake.commit(task, update.manifest.digest) == receipt
    assert await place.announce(run, "ann", update) == receipt
    assert not list((place.folder / "uploads").iterdir())
    assert await place.parts.blobs.exists(update.manifest.digest)


async def test_two_commits_at_once_are_one(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    update, task = place.update(run), run.task_name(ANN)
    await place.announce(run, "ann", update)
    await place.send(run, "ann", update)
    first, second = await asyncio.gather(*(place.intake.commit(task, update.manifest.digest) for _ in range(2)))
    assert first == second


async def test_an_announcement_waits_for_the_commit_of_another_update_and_changes_nothing(
    place: MemoryCoordinator,
) -> None:
    run = await place.collecting("ann", "ben")
    update, other, task = place.update(run), place.update(run, 2), run.task_name(ANN)
    await place.announce(run, "ann", update)
    await place.send(run, "ann", update)
    announcing: list[asyncio.Task[object]] = []

    async def announce_in_between(operation: str, about: object) -> None:
        if operation == "blobs.put" and not announcing:
            announcing.append(asyncio.create_task(place.announce(run, "ann", other)))
            for _ in range(10):
                await asyncio.sleep(0)
            assert not announcing[0].done()

    place.before = announce_in_between
    receipt = await place.intake.commit(task, update.manifest.digest)
    with pytest.raises(AlreadyCommitted):
        await announcing[0]
    assert receipt.receipt.digest == update.manifest.digest
    stored = (await place.parts.blobs.path(update.manifest.digest)).read_bytes()
    assert stored == b"".join(update.chunk(index) for index in range(update.manifest.chunks))


async def test_another_update_after_a_commit_is_refused_and_on_record(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    await place.deliver(run, "ann", place.update(run))
    other = place.update(run, 2)
    with pytest.raises(AlreadyCommitted):
        await place.announce(run, "ann", other)
    with pytest.raises(AlreadyCommitted):
        await place.intake.commit(run.task_name(ANN), other.manifest.digest)
    assert refusals(run) == [("ann", "ALREADY_COMMITTED")], "the same refusal in the same moment is one event"


async def test_an_incomplete_update_is_not_committed(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    update, task = place.update(run), run.task_name(ANN)
    with pytest.raises(ChunksMissing):
        await place.intake.commit(task, update.manifest.digest)
    await place.announce(run, "ann", update)
    with pytest.raises(ChunksMissing):
        await place.intake.commit(task, update.manifest.digest)
    await place.send(run, "ann", update)
    assert isinstance(await place.intake.commit(task, update.manifest.digest), ReceiptRecord)


async def test_a_bad_update_is_dropped_and_its_refusal_is_on_record(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben", aggregation={"max_delta_norm": 1e-6})
    update, task = place.update(run), run.task_name(ANN)
    with pytest.raises(NormTooLarge):
        await place.deliver(run, "ann", update)
    assert refusals(run) == [("ann", "NORM_TOO_LARGE")]
    assert len(run.state.refusals[0].message) <= MAX_PROBLEM
    assert not list((place.folder / "uploads").iterdir())
    with pytest.raises(ChunksMissing):
        await place.intake.commit(task, update.manifest.digest)
    assert not await place.parts.blobs.exists(update.manifest.digest)


async def test_a_full_disk_keeps_the_upload_and_the_client_commits_again_without_sending_again(
    place: MemoryCoordinator,
) -> None:
    run, hooks = await place.collecting("ann", "ben"), Hooks()
    place.before = hooks
    update, task = place.update(run), run.task_name(ANN)
    with hooks.failing("blobs.put", StorageFull(what="the blobs")), pytest.raises(StorageFull):
        await place.deliver(run, "ann", update)
    assert refusals(run) == []
    assert await place.intake.missing(task) == frozenset()
    receipt = await place.intake.commit(task, update.manifest.digest)
    assert receipt.receipt.digest == update.manifest.digest


async def test_a_full_database_keeps_the_announcement_but_the_file_has_been_taken(place: MemoryCoordinator) -> None:
    run, hooks = await place.collecting("ann", "ben"), Hooks()
    place.before = hooks
    update, task = place.update(run), run.task_name(ANN)
    with hooks.failing("store.apply", StorageFull(what="the database")), pytest.raises(StorageFull):
        await place.deliver(run, "ann", update)
    with pytest.raises(ChunksMissing):  # its file is in the blob store already; the client announces and sends it again
        await place.intake.commit(task, update.manifest.digest)
    assert (await place.deliver(run, "ann", update)).receipt.digest == update.manifest.digest


async def test_an_update_is_not_deleted_before_its_receipt_is_written(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    update = place.update(run)
    collecting: list[asyncio.Task[None]] = []

    async def collect_in_between(operation: str, about: object) -> None:
        if operation == "store.apply" and not collecting:
            collecting.append(asyncio.create_task(place.parts.retention.collect(set())))
            for _ in range(10):
                await asyncio.sleep(0)

    place.before = collect_in_between
    await place.deliver(run, "ann", update)
    await asyncio.gather(*collecting)
    assert len(collecting) == 1
    assert await place.parts.blobs.exists(update.manifest.digest)


async def test_a_caller_that_hangs_up_stops_no_commit(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    update, task = place.update(run), run.task_name(ANN)
    await place.announce(run, "ann", update)
    await place.send(run, "ann", update)
    calling = asyncio.ensure_future(place.intake.commit(task, update.manifest.digest))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    calling.cancel()
    receipt = await place.intake.commit(task, update.manifest.digest)
    assert receipt.receipt.client == "ann"


async def test_a_commit_after_its_round_has_ended_is_refused(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben", round={"min_clients": 1, "grace_after_quorum_s": 0})
    update, task = place.update(run), run.task_name(ANN)
    await place.announce(run, "ann", update)
    await place.send(run, "ann", update)
    await place.deliver(run, "ben", place.update(run, 2))
    await place.coordinator.dispatch(run, ev.ClockTicked(place.clock.now_s()))
    assert run.state.phase is Phase.AGGREGATING
    with pytest.raises(RoundClosed):
        await place.intake.commit(task, update.manifest.digest)
    with pytest.raises(RoundClosed):
        await place.intake.put(task, update.manifest.digest, 0, update.chunk(0))


async def test_refusals_of_an_ended_round_are_counted_and_write_no_event(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben", round={"min_clients": 1, "grace_after_quorum_s": 0})
    task = run.task_name(ANN)
    await place.deliver(run, "ann", place.update(run))
    await place.coordinator.dispatch(run, ev.ClockTicked(place.clock.now_s()))
    await place.coordinator.until_averaged(run)
    await place.look(run)
    assert run.state.round == 2
    events = run.sequence
    for seed in (2, 3):
        with pytest.raises(AlreadyCommitted):
            await place.intake.commit(task, place.update(run, seed).manifest.digest)
    assert run.sequence == events
    assert place.parts.refusals.of(run.id) == {ANN: 2}


async def test_an_update_of_a_client_with_a_receipt_in_the_machine_alone_is_refused_not_lost(
    place: MemoryCoordinator,
) -> None:
    """A commit whose receipt is gone from the store cannot be answered, and is refused as one of a closed round."""
    run = await place.collecting("ann", "ben")
    update, task = place.update(run), run.task_name(ANN)
    await place.deliver(run, "ann", update)
    place.tables.runs[run.id].receipts.clear()
    following = await place.next_process()
    run = following.parts.runs.get("r")
    await following.announce(run, "ann", update)
    await following.send(run, "ann", update)
    with pytest.raises(RoundClosed):
        await following.intake.commit(task, update.manifest.digest)


async def test_an_update_asks_the_store_for_nothing_and_writes_once(place: MemoryCoordinator) -> None:
    run, hooks = await place.collecting("ann", "ben"), Hooks()
    update = place.update(run)
    place.before = hooks
    receipt = await place.deliver(run, "ann", update)
    assert await place.announce(run, "ann", update) == receipt, "a repeated call has the same receipt, with its time"
    assert await place.intake.commit(run.task_name(ANN), update.manifest.digest) == receipt
    assert [operation for operation, _ in hooks.calls if operation.startswith("store.")] == ["store.apply"]


async def test_receipts_are_the_same_after_a_restart_and_in_later_rounds(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    task, update = run.task_name(ANN), place.update(run)
    place.clock.advance(1)
    receipt = await place.deliver(run, "ann", update)
    following = await place.next_process()
    following.clock.advance(1)
    run = following.parts.runs.get("r")
    assert await following.intake.commit(task, update.manifest.digest) == receipt
    assert await run.receipt(following.parts.store, task.round, BEN) is None
    assert await run.receipt(following.parts.store, RoundNumber(task.round + 1), ANN) is None
    await following.coordinator.dispatch(run, ev.RunCancelled(following.clock.now_s(), "enough"))
    assert await following.intake.commit(task, update.manifest.digest) == receipt


async def test_a_withdrawn_receipt_is_gone_and_another_round_begins_without_receipts(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben", round={"on_missed_quorum": "skip", "deadline_s": 10, "min_clients": 2})
    first = run.state.round
    await place.deliver(run, "ann", place.update(run))
    await place.coordinator.dispatch(run, ev.MemberRevoked(place.clock.now_s(), ANN))
    assert await run.receipt(place.parts.store, first, ANN) is None
    await place.deliver(run, "ben", place.update(run, 2))
    place.clock.advance(10)
    for name in ("ann", "ben"):
        await place.hello(name)
    await place.look(run)
    assert (run.state.phase, run.state.round) == (Phase.COLLECTING, first + 1)
    assert await run.receipt(place.parts.store, RoundNumber(first + 1), BEN) is None
    old = await run.receipt(place.parts.store, first, BEN)
    assert old is not None
    assert old.round == first


async def test_what_is_known_of_an_update_is_forgotten_with_its_end(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    await place.deliver(run, "ann", place.update(run))
    run.spec.__dict__["aggregation"] = run.spec.aggregation.model_copy(update={"max_delta_norm": 1e-6})
    with pytest.raises(NormTooLarge):
        await place.deliver(run, "ben", place.update(run, 2))
    assert place.intake._announced == {}
    assert place.intake._uploads._open == {}
    assert place.intake._committing == {}


# A disk that fails stops the process; one that is full does not.
DISKS = [(errno.EIO, True), (errno.ENOSPC, False)]


@pytest.mark.parametrize(("number", "stops"), DISKS)
async def test_an_upload_that_cannot_be_deleted_changes_no_outcome(
    place: MemoryCoordinator, monkeypatch: pytest.MonkeyPatch, number: int, stops: bool
) -> None:
    async def drop(_: str) -> None:
        raise OSError(number, "broken")

    run = await place.collecting("ann", "ben")
    monkeypatch.setattr(place.intake._uploads, "drop", drop)
    with capture_logs() as logs:
        assert isinstance(await place.deliver(run, "ann", place.update(run)), ReceiptRecord)
    assert (place.fail_stop.why is not None) == stops
    assert "broken" in next(entry["problem"] for entry in logs if entry["event"] == "uploads.not_swept")


async def test_refusals_are_counted_and_their_text_is_cut(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    before = UPDATES_REFUSED.labels("NOT_FOUND")._value.get()
    await place.intake._note_refusal(run, run.task_name(ANN), NotFound(what="x" * 500, name="y"))
    assert UPDATES_REFUSED.labels("NOT_FOUND")._value.get() == before + 1
    assert len(run.state.refusals[0].message) == 400


async def test_an_ended_run_gets_no_events_of_refusals(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben")
    task, other = run.task_name(ANN), place.update(run, 2)
    await place.deliver(run, "ann", place.update(run))
    await place.coordinator.dispatch(run, ev.RunCancelled(place.clock.now_s(), "enough"))
    events = run.sequence
    with pytest.raises(AlreadyCommitted):
        await place.intake.commit(task, other.manifest.digest)
    assert run.sequence == events


async def test_the_questions_of_each_client_are_its_own(place: MemoryCoordinator) -> None:
    await place.collecting("ann", "ben")
    await place.hello("ann", questions=60)
    await place.hello("ben", questions=30)
    following = await place.next_process()
    run = following.parts.runs.get("r")
    with pytest.raises(InvalidArgument, match="at most 30"):
        await following.announce(run, "ben", following.update(run), examples=31)
    with pytest.raises(InvalidArgument, match="is 0, must be at least 1"):
        await following.announce(run, "ben", following.update(run), examples=0)
    await following.hello("ben", questions=30)
    following.tables.clients.clear()  # the session counts while it is open
    await following.announce(run, "ben", following.update(run), examples=30)


async def test_an_update_that_comes_before_the_next_hello_has_the_noise_of_the_last_one(
    place: MemoryCoordinator,
) -> None:
    await place.collecting("ann", "ben")
    noise = NoiseStatement(noised=True, epsilon=2.0, delta=1e-6, unit="respondent")
    await place.hello("ann", noise=NoiseStatement(noised=False))
    await place.hello("ben", noise=noise)
    following = await place.next_process()
    run = following.parts.runs.get("r")
    await following.deliver(run, "ben", following.update(run))
    await following.hello("ann", noise=noise)
    await following.deliver(run, "ann", following.update(run, 2), noise=NoiseStatement(noised=False))
    assert dict(run.noise) == {"ben": noise, "ann": NoiseStatement(noised=False)}, (
        "what comes with an update goes before"
    )


BATCH = (Candidates("which?", ("one", "two", "three")), Candidates("who?", ("me", "you")))


async def test_the_distance_of_rewards_is_computed_here_and_their_examples_have_no_limit(
    place: MemoryCoordinator,
) -> None:
    run = await place.rewarding("ann", "ben", batch=BATCH)
    rewards = place.update(run, shares=(0.25, 0.5, 0.75, 1.0, 0.5))
    receipt = (await place.deliver(run, "ann", rewards, 51, base_distance=0.125)).receipt
    assert receipt.distance == pytest.approx(0.4)
    assert receipt == ev.Receipt(ANN, rewards.manifest.digest, 51, receipt.distance, None)
    with pytest.raises(InvalidArgument, match=r"outside 0 \.\. 1"):
        await place.deliver(run, "ben", place.update(run, 2, shares=(0.25, 0.5, 0.75, 1.5, 0.5)))


# Tending


async def test_uploads_of_rounds_that_have_ended_are_deleted_when_a_round_ends(place: MemoryCoordinator) -> None:
    run = await place.collecting("ann", "ben", round={"on_missed_quorum": "skip", "deadline_s": 10})
    update, task = place.update(run), run.task_name(ANN)
    await place.announce(run, "ann", update)
    (place.folder / "uploads" / "stray.part").write_bytes(b"x")
    tending = asyncio.create_task(place.intake.tend())
    await until(lambda: not (place.folder / "uploads" / "stray.part").exists())
    assert (place.folder / "uploads" / f"{upload_key(task)}.part").exists(), "the round is still open"
    await place.intake.put(task, update.manifest.digest, 0, update.chunk(0))  # it is still announced as well
    place.clock.advance(10)
    await place.coordinator.dispatch(run, ev.ClockTicked(place.clock.now_s()))
    await until(lambda: not (place.folder / "uploads" / f"{upload_key(task)}.part").exists())
    with pytest.raises(ChunksMissing):
        await place.intake.commit(task, update.manifest.digest)
    tending.cancel()


@pytest.mark.parametrize(("number", "stops"), DISKS)
async def test_uploads_that_cannot_be_deleted_are_logged_and_tried_again(
    place: MemoryCoordinator, monkeypatch: pytest.MonkeyPatch, number: int, stops: bool
) -> None:
    tries: list[int] = []

    async def sweep(_: object) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise OSError(number, "broken")

    monkeypatch.setattr(place.parts.intake._uploads, "sweep", sweep)
    with capture_logs() as logs:
        tending = asyncio.create_task(place.intake.tend())
        for count in (1, 2):
            await until(lambda count=count: len(tries) >= count)  # type: ignore[misc]
            place.parts.run_bell.ring()
        await settle()
        tending.cancel()
    assert len(tries) == 2, "no round has ended, so there is nothing to sweep"
    assert [entry["event"] for entry in logs] == ["uploads.not_swept"]
    assert "broken" in logs[0]["problem"]
    assert (place.fail_stop.why is not None) == stops
    assert TEND_S == 60


async def test_nothing_is_swept_while_an_update_is_committed(place: MemoryCoordinator) -> None:
    stray = place.folder / "uploads" / "stray.part"
    stray.write_bytes(b"x")
    task, committing = TaskName.parse("runs/r/rounds/1/tasks/train-ann"), asyncio.Event()
    place.intake._committing[task] = cast(Any, committing)
    tending = asyncio.create_task(place.intake.tend())
    await settle()
    assert stray.exists()
    place.intake._committing.clear()
    place.parts.run_bell.ring()
    await until(lambda: not stray.exists())
    tending.cancel()


def test_a_task_belongs_to_its_caller() -> None:
    name = "runs/r/rounds/1/tasks/train-ann"
    assert str(parse_task(name, ANN)) == name
    with pytest.raises(IdentityMismatch):
        parse_task(name, BEN)
    with pytest.raises(InvalidArgument):
        parse_task("train-ann", ANN)


def test_each_round_and_client_has_an_upload_of_its_own() -> None:
    task = TaskName.parse("runs/r/rounds/12/tasks/train-ann")
    assert upload_key(task) == "r.12.ann"
