"""No side effect breaks a step of a run: whatever fails after a durable event, the run goes on, and so do the other runs."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs
from support.coordinator_harness import small_spec
from support.memory_store import MemoryStore, Tables

from pluralllm.common.errors.tree import StorageFull, StoreFailed
from pluralllm.common.process.clock import FakeClock
from pluralllm.common.process.pulse import SILENT_FOR_S
from pluralllm.common.weights.layout import write_weights
from pluralllm.common.words.ids import ClientId, GroupName, RoundNumber
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.aggregation.next_version import write_next
from pluralllm.server.process.fail_stop import FailStop
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs import coordinator as coordinator_module
from pluralllm.server.runs import step_reports
from pluralllm.server.runs.assembly import Assembly
from pluralllm.server.runs.coordinator import Timing
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.sessions import Session
from pluralllm.server.runs.uploads import Uploads
from pluralllm.server.storage.blobs import LocalBlobs
from pluralllm.server.storage.store import Change

SPEC = small_spec(rounds=3, round={"min_clients": 2, "deadline_s": 1000.0})
CLIENTS = (ClientId("ann"), ClientId("ben"))
OTHERS = (ClientId("cem"), ClientId("dan"))
TURNS_LIMIT = 10_000


class FailingStore(MemoryStore):
    """A store whose method `apply` can fail."""

    fails: Callable[[object], Exception | None] = staticmethod(lambda change: None)

    async def apply(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if (error := self.fails(change)) is not None:
                raise error
        await super().apply(changes)


class Runs:
    """A coordinator over a store in memory, and two clients that a test drives by hand."""

    def __init__(self, folder: Path) -> None:
        for name in ("scratch", "uploads", "blobs"):
            (folder / name).mkdir()
        self.folder, self.clock, self.fail_stop = folder, FakeClock(), FailStop()
        self.store, self.blobs = FailingStore(Tables()), LocalBlobs(folder / "blobs")
        self.parts = Assembly(
            self.store,
            self.blobs,
            self.clock,
            self.fail_stop,
            Timing(),
            scratch=folder / "scratch",
            uploads=Uploads(folder / "uploads"),
            poll_hold_s=1.0,
        )
        self.coordinator = self.parts.coordinator

    async def opened(self, run_id: str = "r", clients: tuple[ClientId, ...] = CLIENTS) -> LiveRun:
        """Returns a run with an open round of both clients."""
        run = await self.coordinator.create_run(run_id, SPEC.canonical_json())
        await self.coordinator.dispatch(run, ev.RunStarted(self.clock.now_s()))
        for client in clients:
            self.parts.sessions.open(Session(client, "i", GroupName("g"), GroupRole.TRAIN, 50, "1", self.clock.now_s()))
        for _ in range(4):
            await self.coordinator.advance(run)
            for client in clients:
                score = ev.Score(client, client, GroupRole.TRAIN, run.state.version, 0.5, 0.3, None, 5)  # type: ignore[arg-type]
                if run.state.phase is Phase.EVALUATING:
                    await self.coordinator.dispatch(run, ev.EvaluationArrived(self.clock.now_s(), score))
        assert run.state.phase is Phase.COLLECTING
        return run

    async def deliver(self, run: LiveRun) -> None:
        """Delivers the updates of both clients, so that the round is averaged."""
        for client in CLIENTS:
            draft = self.folder / "draft"
            manifest = write_weights(draft, run.layout, [np.zeros(run.layout.values, np.float32)])
            await self.blobs.put(manifest.digest, draft)
            receipt = ev.Receipt(client, manifest.digest, 10, 0.2, 0.0)
            number = RoundNumber(run.state.round)
            await self.coordinator.dispatch(
                run, ev.UpdateArrived(self.clock.now_s(), number, run.state.version, receipt)
            )

    async def until(self, holds: Callable[[], bool]) -> None:
        """Lets the event loop and its threads work until `holds` returns true, for TURNS_LIMIT turns at most."""
        for _ in range(TURNS_LIMIT):
            if holds():
                return
            await asyncio.sleep(0.0005)
        raise AssertionError("it does not become true")

    def tick(self) -> None:
        self.clock.advance(1.0)


@pytest.fixture
async def runs(tmp_path: Path) -> AsyncIterator[Runs]:
    made = Runs(tmp_path)
    yield made
    await made.parts.tasks.stop()


async def test_a_report_that_fails_breaks_neither_the_step_nor_the_other_reports(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    later: list[str] = []

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    reports = (fail, lambda run, step: later.append(type(step.event).__name__))
    monkeypatch.setattr(step_reports, "REPORTS", reports)
    with capture_logs() as logs:
        run = await runs.opened()
        await runs.deliver(run)
        await runs.until(lambda: "ModelAveraged" in later)
    assert run.state.version == 1
    assert later.count("UpdateArrived") == 2
    assert {line["event"] for line in logs if line["log_level"] == "error"} == {"run.step_not_reported"}


async def test_an_averaging_that_was_never_started_is_started_by_the_loop(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await runs.opened()
    with monkeypatch.context() as patch:
        patch.setattr(runs.coordinator, "_follow", lambda run, step: None)
        await runs.deliver(run)
    assert run.state.phase is Phase.AGGREGATING
    await runs.coordinator.advance(run)
    await runs.until(lambda: run.state.version == 1)


async def test_an_averaging_that_fails_for_an_unknown_reason_is_tried_again(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await runs.opened()
    tries = 0

    async def fail_twice(*arguments: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries <= 2:
            raise ValueError("a bug")
        return await write_next(*arguments)

    monkeypatch.setattr(coordinator_module, "write_next", fail_twice)
    with capture_logs() as logs:
        await runs.deliver(run)
        for number in (1, 2):
            await runs.until(lambda number=number: tries == number)  # type: ignore[misc]
            assert runs.parts.troubles.of(run.id) == "a bug"
            await asyncio.sleep(0)
            runs.clock.advance(coordinator_module.RETRY_S)
        await runs.until(lambda: run.state.version == 1)
        await runs.until(lambda: runs.parts.troubles.of(run.id) == "")
    broken = [line for line in logs if line["event"] == "run.broken"]
    assert len(broken) == 1, "the same problem is logged once"


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), StoreFailed(problem="locked"), StorageFull(what="the database")]
)
async def test_a_run_that_fails_is_in_trouble_and_the_others_go_on(runs: Runs, error: Exception) -> None:
    await runs.opened("first")
    await runs.opened("second", OTHERS)
    runs.store.fails = lambda change: error if change.run == "first" else None  # type: ignore[attr-defined]
    await runs.coordinator.start()
    first, second = runs.parts.runs.get("first"), runs.parts.runs.get("second")
    runs.clock.advance(2000.0)  # past the deadline of both rounds
    runs.coordinator.wake()
    await runs.until(lambda: second.state.extensions > 0 or second.state.phase is not Phase.COLLECTING)
    await runs.until(lambda: runs.parts.troubles.of(first.id) == str(error))
    runs.store.fails = lambda change: None
    runs.coordinator.wake()
    await runs.until(lambda: runs.parts.troubles.of(first.id) == "")
    assert runs.fail_stop.why is None


async def test_the_loop_beats_between_two_runs(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, clients in (("first", CLIENTS), ("second", OTHERS)):
        await runs.opened(name, clients)
    beats: dict[str, int] = {}

    async def advance(run: LiveRun) -> None:
        beats.setdefault(run.id, runs.parts.pulse.beats)

    monkeypatch.setattr(runs.coordinator, "advance", advance)
    await runs.coordinator.start()
    await runs.until(lambda: len(beats) == 2)
    assert beats["second"] == beats["first"] + 1


async def test_time_that_passes_during_a_turn_of_the_loop_is_seen_without_another_bell(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    await runs.opened()
    seen_s: list[float] = []

    async def advance(_: LiveRun) -> None:
        seen_s.append(runs.clock.now_s())
        if len(seen_s) == 1:
            runs.clock.advance(Timing().tick_s)

    await runs.coordinator.start()
    monkeypatch.setattr(runs.coordinator, "advance", advance)
    runs.coordinator.wake()
    await runs.until(lambda: len(seen_s) == 2)
    assert seen_s[1] == seen_s[0] + Timing().tick_s


async def test_a_loop_that_stands_still_beats_no_more(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    run = await runs.opened()
    stuck = asyncio.Event()

    async def never(_: LiveRun) -> None:
        stuck.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(runs.coordinator, "advance", never)
    await runs.coordinator.start()
    await asyncio.wait_for(stuck.wait(), 10)
    beats = runs.parts.pulse.beats
    for _ in range(10):
        runs.tick()
        runs.coordinator.wake()
        await asyncio.sleep(0)
    assert runs.parts.pulse.beats == beats
    assert run.state.phase is Phase.COLLECTING
    assert SILENT_FOR_S == 30.0, "the documents name this limit"


async def test_a_revocation_that_a_run_could_not_record_is_recorded_later_and_once(runs: Runs) -> None:
    run = await runs.opened()
    runs.store.fails = lambda change: StorageFull(what="the coordinator's database")
    await runs.coordinator.remove_client(CLIENTS[0])
    assert CLIENTS[0] in run.state.roster
    runs.store.fails = lambda change: None
    await runs.coordinator.advance(run)
    assert CLIENTS[0] not in run.state.roster
    sequence = run.sequence
    await runs.coordinator.advance(run)
    await runs.coordinator.remove_client(CLIENTS[0])
    assert run.sequence == sequence


async def test_a_receipt_stands_although_its_upload_cannot_be_deleted(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await runs.opened()
    task = run.task_name(CLIENTS[0])
    draft = runs.folder / "draft"
    manifest = write_weights(draft, run.layout, [np.zeros(run.layout.values, np.float32)])
    intake, content = runs.parts.intake, draft.read_bytes()
    missing = await intake.begin(task, run.record.spec_sha256, run.base.digest, manifest, 10, {})
    assert missing == frozenset({0})
    await intake.put(task, manifest.digest, 0, content)

    async def fail(_: object, key: str) -> None:
        raise PermissionError(1, "Operation not permitted", key)

    monkeypatch.setattr(Uploads, "drop", fail)
    with capture_logs() as logs:
        receipt = await intake.commit(task, manifest.digest)
    assert receipt.receipt.digest == manifest.digest
    assert "uploads.not_swept" in {line["event"] for line in logs}
    assert runs.fail_stop.why is None
