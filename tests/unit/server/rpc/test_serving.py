"""Constants of the ports that depend on settings, and the health service."""

import asyncio
from typing import Any

import pytest
from annotated_types import Le

from pluralllm.client.link.transport import CALL_DEADLINE_S
from pluralllm.common.process.pulse import SILENT_FOR_S, Pulse
from pluralllm.common.weights.chunks import CHUNK_BYTES
from pluralllm.common.weights.pieces import PIECE_BYTES, transfer_s
from pluralllm.common.wire.chunk_messages import PUT_CHUNKS
from pluralllm.common.wire.messages import MAX_MESSAGE_BYTES, PING_EVERY_MS, PING_LIMIT_MS, SERVER_PING_LIMIT_MS
from pluralllm.common.words.spec import MAX_SPEC_BYTES
from pluralllm.server.members.access import OPERATIONS, RULES
from pluralllm.server.process.config import ServerConfig
from pluralllm.server.rpc import serving
from pluralllm.server.rpc.serving import CONNECTION_GRACE_MS, LARGE_MESSAGES_S, MESSAGE_S


def test_a_connection_of_age_outlives_the_longest_poll_that_may_be_configured() -> None:
    [longest_hold_s] = [
        bound.le for bound in ServerConfig.model_fields["poll_hold_s"].metadata if isinstance(bound, Le)
    ]
    assert 2 * 1000 * longest_hold_s < CONNECTION_GRACE_MS  # type: ignore[operator]


def test_the_limits_on_silence_leave_time_for_the_slowest_link() -> None:
    """At most 64 KiB or one message stand on a stream before another call's message."""
    queue_s = transfer_s(64 * 1024 + PIECE_BYTES)
    assert transfer_s(CHUNK_BYTES) + queue_s < CONNECTION_GRACE_MS / 1000  # a cut upload has brought one chunk at least
    assert 2 * queue_s < PING_LIMIT_MS / 1000
    assert queue_s + transfer_s(MAX_MESSAGE_BYTES) < SERVER_PING_LIMIT_MS / 1000
    assert 2 * queue_s < CALL_DEADLINE_S
    assert queue_s < ServerConfig().chunk_idle_s
    assert queue_s < ServerConfig().lease_s - ServerConfig().poll_hold_s
    assert queue_s + transfer_s(MAX_SPEC_BYTES) < MESSAGE_S
    assert queue_s + transfer_s(CHUNK_BYTES) < LARGE_MESSAGES_S[PUT_CHUNKS]  # an earlier release sends whole chunks
    assert queue_s + transfer_s(MAX_MESSAGE_BYTES) < LARGE_MESSAGES_S[f"{OPERATIONS}AskRewards"]


def test_a_daemon_notices_a_silent_connection_before_it_counts_as_standing_still() -> None:
    assert (PING_EVERY_MS + PING_LIMIT_MS) / 1000 < SILENT_FOR_S
    options = dict(serving.OPTIONS)
    assert options["grpc.http2.min_ping_interval_without_data_ms"] < PING_EVERY_MS


def test_the_methods_with_large_messages_exist() -> None:
    assert LARGE_MESSAGES_S.keys() <= RULES.keys()
    assert min(LARGE_MESSAGES_S.values()) > MESSAGE_S


class Checks:
    """A health service that keeps what it is set to."""

    def __init__(self) -> None:
        self.by_service: dict[str, int] = {}
        self.count = 0

    async def set(self, service: str, status: int) -> None:
        self.by_service[service] = status
        self.count += 1


async def test_the_health_service_follows_the_pulse(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, turns = 0.0, asyncio.Event()

    async def sleep(_: float) -> None:
        turns.set()
        await go_on.get()

    go_on: asyncio.Queue[None] = asyncio.Queue()
    monkeypatch.setattr(serving, "asyncio", type("Asyncio", (), {"sleep": staticmethod(sleep)}))
    checks: Any = Checks()
    pulse = Pulse(lambda: now_s)
    tending = asyncio.create_task(serving._tend_health(checks, pulse))
    for now_s, status in ((SILENT_FOR_S, None), (SILENT_FOR_S + 1, 2), (SILENT_FOR_S + 2, 2)):  # noqa: B007 - of the pulse
        turns.clear()
        go_on.put_nowait(None)
        await turns.wait()
        assert set(checks.by_service.values()) == ({status} if status else set())
    pulse.beat()
    go_on.put_nowait(None)
    turns.clear()
    await turns.wait()
    assert set(checks.by_service.values()) == {1}
    assert "" in checks.by_service
    assert checks.count == 2 * (len(serving.SERVICES) + 1), "only a change is set"
    tending.cancel()
