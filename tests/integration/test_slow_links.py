"""Uploads and downloads over slow links arrive, and do not hold up the other calls on their connection.

The links are so slow that one chunk takes longer than the coordinator waits for a silent client. PLURALLLM_FAULTS=all tries the
speeds and sizes of real links.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.coordinator_harness import Served, serving, write_delta
from support.paced_relay import PacedRelay, paced_relay
from support.process_harness import process_spec

from pluralllm.client.link import link_speed
from pluralllm.client.link import transport as transport_module
from pluralllm.client.link.tasks import Introduction, Scores, Task
from pluralllm.client.link.transport import Transport
from pluralllm.common.errors.tree import LinkTooSlow
from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.process.clock import SystemClock
from pluralllm.common.wire.messages import CHANNEL_OPTIONS, pings
from pluralllm.common.words.names import TaskKind
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole, RunSpec
from pluralllm.server.rounds.state import Phase

KIB = 1024
FAST, SLOW = 100e6, 96 * KIB  # bytes per second
LIMIT_S = 60
BEGUN_BYTES = 16 * KIB
REAL_LIMIT_S = 250
ALONE = {"min_clients": 1, "target_clients": 1}
SMALLER = {"d_model": 64, "feedforward": 64, "layers": 2, "embedder_layers": 2, "heads": 2}
SPEC = process_spec(rounds=1, round=ALONE, predictor=SMALLER)  # 247 kB, one chunk
REAL_SPEC = process_spec(rounds=1, round=ALONE)  # 1.4 MB
IDLE_S = 2.0
QUESTIONS = 50
ALL = os.environ.get("PLURALLLM_FAULTS") == "all"
REAL_LINKS = pytest.mark.skipif(not ALL, reason="takes minutes; all speeds: make faults")


class Ann:
    """One client behind a link, with a task to hand in."""

    def __init__(self, served: Served, relay: PacedRelay, transport: Transport, spec: RunSpec, folder: Path) -> None:
        self.served, self.relay, self.transport, self.spec, self.folder = served, relay, transport, spec, folder

    async def task(self) -> Task:
        """Returns the training task; an evaluation that comes before it is answered."""
        await self.transport.hello(Introduction("group of ann", GroupRole.TRAIN, QUESTIONS))
        while True:
            match await self.transport.poll(None, []):
                case Task(kind=TaskKind.EVALUATE) as task:
                    await self.transport.report_scores(task.name, Scores(0.5, 0.5, None, QUESTIONS))
                case Task() as task:
                    return task

    async def push(self, task: Task) -> int:
        """Hands in an update, and returns its size in bytes."""
        path = self.folder / "delta"
        manifest = await asyncio.to_thread(write_delta, path, self.spec, 1)
        spec, base = task.spec_sha256, task.base_digest
        await self.transport.push_update(task.name, path, manifest, spec, base, QUESTIONS, {})
        assert await self.served.parts.blobs.exists(manifest.digest)
        return manifest.size_bytes

    async def fetch(self, task: Task) -> int:
        """Downloads the task's model version, and returns its size in bytes."""
        target, size_bytes = self.folder / "model", layout_for(self.spec).size_bytes
        await self.transport.fetch_model(task.run, task.base_version, task.base_digest, size_bytes, target)
        return target.stat().st_size


@contextlib.asynccontextmanager
async def ann(folder: Path, spec: RunSpec, **settings: Any) -> AsyncIterator[Ann]:
    async with (
        serving(folder / "server", SystemClock(), silence_s=600, **settings) as served,
        paced_relay(served.address, FAST, FAST) as relay,
    ):
        await served.create("r", spec)
        member = await served.member("ann", MemberRole.CLIENT, "group of ann")
        transport = Transport.of_member(member.at(relay.address))
        try:
            yield Ann(served, relay, transport, spec, folder)
        finally:
            await transport.close()


async def test_an_update_over_a_slow_link_arrives_at_the_first_try_and_other_calls_pass(tmp_path: Path) -> None:
    async with asyncio.timeout(LIMIT_S), ann(tmp_path, SPEC, chunk_idle_s=IDLE_S) as one:
        task = await one.task()
        one.relay.bytes_s["to"] = SLOW
        sent_before, begun_s = one.relay.passed_bytes["to"], time.monotonic()
        pushing = asyncio.create_task(one.push(task))
        await one.relay.until_passed("to", sent_before + BEGUN_BYTES)
        before = one.relay.passed_bytes["to"]
        await one.transport.report_progress(task.name, "handing in", 0.5)
        waited_bytes = one.relay.passed_bytes["to"] - before
        size_bytes = await pushing
        assert time.monotonic() - begun_s > IDLE_S  # the one chunk took longer than a client may be silent
        assert one.relay.passed_bytes["to"] - sent_before < 1.2 * size_bytes
        assert waited_bytes < size_bytes / 2, "a call waited for the upload"


async def test_a_model_over_a_slow_link_arrives_at_the_first_try_and_other_calls_pass(tmp_path: Path) -> None:
    async with asyncio.timeout(LIMIT_S), ann(tmp_path, SPEC) as one:
        task = await one.task()
        one.relay.bytes_s["from"] = SLOW
        sent_before = one.relay.passed_bytes["from"]
        fetching = asyncio.create_task(one.fetch(task))
        await one.relay.until_passed("from", sent_before + BEGUN_BYTES)
        before = one.relay.passed_bytes["from"]
        await one.transport.report_progress(task.name, "fetching", 0.5)
        waited_bytes = one.relay.passed_bytes["from"] - before
        size_bytes = await fetching
        assert one.relay.passed_bytes["from"] - sent_before < 1.2 * size_bytes
        assert waited_bytes < size_bytes / 2, "a call waited for the download"


@pytest.mark.timeout(REAL_LIMIT_S)
@pytest.mark.skipif(not ALL, reason="takes minutes; make faults tries it")
@pytest.mark.parametrize("kib_s", [16, 32, 64])
async def test_a_model_of_the_usual_size_and_its_update_pass_over_every_supported_link(
    tmp_path: Path, kib_s: int
) -> None:
    async with asyncio.timeout(REAL_LIMIT_S), ann(tmp_path, REAL_SPEC) as one:
        task = await one.task()
        one.relay.bytes_s.update(to=kib_s * KIB, **{"from": kib_s * KIB})
        start = dict(one.relay.passed_bytes)
        fetched_bytes = await one.fetch(task)
        pushing = asyncio.create_task(one.push(task))
        while not pushing.done():  # other calls pass and the lease is kept, until the update has its receipt
            answer = await one.transport.poll(task.name, [])
            is_held = isinstance(answer, Task) and answer.name == task.name
            assert is_held or one.served.parts.runs.get(task.run).state.phase is not Phase.COLLECTING
        pushed_bytes = await pushing
        assert one.relay.passed_bytes["from"] - start["from"] < 1.1 * fetched_bytes
        assert one.relay.passed_bytes["to"] - start["to"] < 1.1 * pushed_bytes


async def test_a_link_slower_than_the_slowest_supported_one_is_named_as_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_speed, "MEASURED_S", 0.5)
    monkeypatch.setattr(link_speed, "SLOWEST_LINK_BYTES_S", 10 * SLOW)
    monkeypatch.setattr(transport_module, "stream_deadline_s", lambda _: 1.0)
    monkeypatch.setattr(transport_module, "RETRY_FOR_S", 0.1)
    async with asyncio.timeout(LIMIT_S), ann(tmp_path, SPEC) as one:
        task = await one.task()
        one.relay.bytes_s["to"] = SLOW
        with pytest.raises(LinkTooSlow) as raised:
            await one.push(task)
        assert raised.value.way == "to"
        assert raised.value.kib_s < raised.value.needed_kib_s == 10 * SLOW / KIB


async def test_a_connection_that_brings_no_byte_ends_when_no_answer_to_a_ping_comes() -> None:
    """Without the time for a ping's answer among the options, gRPC would wait a minute for it."""
    held = asyncio.Event()

    async def hold(_request: bytes, _context: object) -> bytes:
        held.set()
        await asyncio.Event().wait()
        raise AssertionError

    server = grpc.aio.server(options=[("grpc.http2.min_ping_interval_without_data_ms", 100)])
    handler: Any = grpc.unary_unary_rpc_method_handler(hold)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", {"Hold": handler}),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with asyncio.timeout(LIMIT_S / 2), paced_relay(address, FAST, FAST) as relay:
        options = [*CHANNEL_OPTIONS, *pings(1_000, 500), ("grpc.enable_http_proxy", 0)]
        async with grpc.aio.insecure_channel(relay.address, options) as channel:
            calls: Any = channel.unary_unary("/test/Hold")
            call = calls(b"")
            await held.wait()
            relay.bytes_s.update(to=1e-6, **{"from": 1e-6})
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
    await server.stop(0)
