"""Held polls and other calls have limits of their own, so that idle clients keep no administrator out."""

import asyncio
from pathlib import Path

import grpc
import pytest
from support.coordinator_harness import DEADLINE_S, Served, serving, small_spec

from pluralllm.common.errors.grpc_status import from_rpc_error
from pluralllm.common.errors.tree import Busy
from pluralllm.v1 import operations_pb2

LIMIT = 16


async def until_held(served: Served, polls: int) -> None:
    """Waits until so many polls are held."""
    async with asyncio.timeout(DEADLINE_S):
        while sum(one.polls_open for one in served.parts.sessions.live(served.clock.now_s())) < polls:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def reads_without_end(served: Served) -> None:
    """Reads the run again and again, until a call is refused."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            await served.run("r")
            await asyncio.sleep(0.02)


async def test_as_many_held_polls_as_allowed_keep_out_one_more_and_no_administrator(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", max_held_polls=LIMIT, max_concurrent_rpcs=LIMIT) as served:
        ann, ben = await served.client("ann"), await served.client("ben")
        held = [asyncio.create_task(ann.poll(hold_s=20)) for _ in range(LIMIT)]
        await until_held(served, LIMIT)
        answer = await ben.poll(hold_s=20)
        assert f"holds {LIMIT} polls, as many as max_held_polls" in answer.wait.reason
        await served.create("r", small_spec(), start=False)
        assert (await served.run("r")).name == "runs/r"
        request = operations_pb2.WatchRunRequest(name="runs/r")
        streams = [served.operations.WatchRun(request, timeout=DEADLINE_S) for _ in range(LIMIT)]
        reading = [asyncio.ensure_future(stream.read()) for stream in streams]
        with pytest.raises(grpc.RpcError) as refused:
            await reads_without_end(served)
        busy = from_rpc_error(refused.value, "the coordinator")
        assert type(busy) is Busy
        assert f"{LIMIT} calls are open, as many as max_concurrent_rpcs" in str(busy)
        assert (await ben.poll()).wait.reason, "a poll is no such call"
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        served.coordinator.drain()
        assert {answer.wait.reason for answer in await asyncio.gather(*held)} == {"the coordinator is stopping"}
