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
from pluralllm.server.runs.assembly import Assembly
from pluralllm.server.runs.coordinator import Timing
from pluralllm.server.runs.uploads import Uploads
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
async def parts(tmp_path: Path) -> AsyncIterator[Assembly]:
    with StateDirectory(tmp_path / "state") as state:
        store = await open_store(state.database_url)
        made = Assembly(
            store,
            WatchedBlobs(state.blobs),
            FakeClock(),
            FailStop(),
            Timing(),
            scratch=state.scratch,
            uploads=Uploads(state.uploads),
            poll_hold_s=1.0,
        )
        yield made
        await made.tasks.stop()
        await store.close()


async def hang_up(call: "asyncio.Task[object]", turns: int) -> None:
    """Cancels a call after a number of turns of the event loop, or when it is done."""
    for _ in range(turns):
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])


async def test_a_dispatch_whose_caller_hangs_up_happens_wholly_or_not_at_all(parts: Assembly) -> None:
    run = await parts.coordinator.create_run("r", SPEC_JSON)
    await parts.coordinator.dispatch(run, ev.RunStarted(1.0))
    for turns in range(30):
        event = ev.RunResumed(2.0) if run.state.paused else ev.RunPaused(2.0)
        await hang_up(asyncio.create_task(parts.coordinator.dispatch(run, event)), turns)
        await parts.coordinator.dispatch(run, event)  # the client asks again; nothing is stuck
        assert run.state.paused == isinstance(event, ev.RunPaused)
        assert [row.sequence for row in await parts.store.events(run.id, 0, 1_000)] == list(range(1, run.sequence + 1))


async def test_a_run_whose_creator_hangs_up_can_be_created_again(parts: Assembly) -> None:
    assert isinstance(parts.blobs, WatchedBlobs)
    for turns in range(20):
        parts.blobs.stored.clear()
        creating = asyncio.create_task(parts.coordinator.create_run(f"r{turns}", SPEC_JSON))
        await asyncio.wait_for(parts.blobs.stored.wait(), 10)
        await hang_up(creating, turns)
        assert (await parts.coordinator.create_run(f"r{turns}", SPEC_JSON)).id == RunId(f"r{turns}")
    assert [run.id for run in parts.runs.all()] == [record.id for record in await parts.store.runs()]
