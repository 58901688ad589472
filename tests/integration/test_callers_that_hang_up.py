"""A call may be cancelled at any moment, by its client or its deadline: the states on disk and in memory still agree."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.coordinator_harness import small_spec

from pluralllm.common.process.clock import FakeClock
from pluralllm.common.words.ids import Digest, RunId
from pluralllm.server.process.fail_stop import FailStop
from pluralllm.server.rounds import events as ev
from pluralllm.server.runs.coordinator import Coordinator, Timing
from pluralllm.server.storage.blobs import LocalBlobs
from pluralllm.server.storage.sql_store import open_store
from pluralllm.server.storage.state_directory import StateDirectory

SPEC_JSON = small_spec().canonical_json()


class WatchedBlobs(LocalBlobs):
    """A blob store that notifies a test when a blob is durable and its record is not written yet."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.stored = asyncio.Event()

    async def put(self, digest: Digest, source: Path) -> None:
        await super().put(digest, source)
        self.stored.set()


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[Coordinator]:
    with StateDirectory(tmp_path / "state") as state:
        store = await open_store(state.database_url)
        found = Coordinator(store, WatchedBlobs(state.blobs), state.scratch, FakeClock(), Timing(), FailStop())
        yield found
        await found.stop()
        await store.close()


async def hang_up(call: "asyncio.Task[object]", turns: int) -> None:
    """Cancels a call after a number of turns of the event loop, or when it is done."""
    for _ in range(turns):
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])


async def test_a_dispatch_whose_caller_hangs_up_happens_wholly_or_not_at_all(coordinator: Coordinator) -> None:
    run = await coordinator.create_run("r", SPEC_JSON)
    await coordinator.dispatch(run, ev.RunStarted(1.0))
    for turns in range(30):
        event = ev.RunResumed(2.0) if run.state.paused else ev.RunPaused(2.0)
        await hang_up(asyncio.create_task(coordinator.dispatch(run, event)), turns)
        await coordinator.dispatch(run, event)  # the client asks again; nothing is stuck
        assert run.state.paused == isinstance(event, ev.RunPaused)
        assert [row.sequence for row in await coordinator.store.events(run.id, 0, 1_000)] == list(
            range(1, run.sequence + 1)
        )


async def test_a_run_whose_creator_hangs_up_can_be_created_again(coordinator: Coordinator) -> None:
    assert isinstance(coordinator.blobs, WatchedBlobs)
    for turns in range(20):
        coordinator.blobs.stored.clear()
        creating = asyncio.create_task(coordinator.create_run(f"r{turns}", SPEC_JSON))
        await asyncio.wait_for(coordinator.blobs.stored.wait(), 10)
        await hang_up(creating, turns)
        assert (await coordinator.create_run(f"r{turns}", SPEC_JSON)).id == RunId(f"r{turns}")
    assert [run.id for run in coordinator.runs()] == [record.id for record in await coordinator.store.runs()]
