"""The real processes, as systemd and a health check see them."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.commands import SERVER, typed
from support.coordinator_harness import small_spec

from pluralllm.common.process.pulse import SILENT_FOR_S
from pluralllm.operator.remote import Remote

LIMIT_S = 60.0
SIGNS_EVERY_S = 0.2  # a third of the watchdog's time
WATCHDOG = {"WATCHDOG_USEC": str(round(3e6 * SIGNS_EVERY_S))}
# A coordinator whose loop waits for ever as soon as there is a run. Everything else goes on.
STUCK = """
import asyncio
from pluralllm.common.process import pulse
from pluralllm.server import __main__ as server
from pluralllm.server.runs.coordinator import Coordinator

async def advance(coordinator, run):
    await asyncio.Event().wait()

pulse.SILENT_FOR_S = 1.0
Coordinator.advance = advance
server.main()
"""


@pytest.fixture
def notify(tmp_path: Path) -> Iterator[socket.socket]:
    """systemd's end of NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        yield end


def receives(notify: socket.socket, message: str) -> None:
    """Waits for a message to systemd, within the limit, and skips others before it."""
    end_s = time.monotonic() + LIMIT_S
    while time.monotonic() < end_s:
        if select.select([notify], [], [], 0.2)[0] and message in notify.recv(4096).decode().splitlines():
            return
    raise AssertionError(f"not told within {LIMIT_S} s: {message}")


def healthy(state: Path) -> "subprocess.CompletedProcess[str]":
    return typed(SERVER, "healthy", "--state-dir", state)


def test_a_coordinator_says_that_it_is_ready_lives_and_stops(tmp_path: Path, notify: socket.socket) -> None:
    state = tmp_path / "state"
    assert healthy(state).returncode == 3
    assert "has not started" in healthy(state).stderr
    settings = {"NOTIFY_SOCKET": str(tmp_path / "notify"), **WATCHDOG}
    serve = ["serve", "--plain-text", "--listen", "127.0.0.1:0", "--state-dir", str(state)]
    process = subprocess.Popen([sys.executable, "-m", "pluralllm.server", *serve], env={**os.environ, **settings})
    try:
        receives(notify, "READY=1")
        for _ in range(3):
            receives(notify, "WATCHDOG=1")
        done = healthy(state)
        assert done.returncode == 0
        assert "alive" in done.stdout
        process.terminate()
        receives(notify, "STOPPING=1")
        assert process.wait(LIMIT_S) == 0
    finally:
        process.kill()
        process.wait(10)
    assert healthy(state).returncode == 3, "a process that has stopped is not alive"


def test_a_coordinator_goes_on_after_a_hangup_in_a_new_log_file(tmp_path: Path, notify: socket.socket) -> None:
    log, moved = tmp_path / "log", tmp_path / "log.1"
    settings = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "PLURALLLM_SERVER_LOG_FILE": str(log)}
    serve = ["serve", "--plain-text", "--listen", "127.0.0.1:0", "--state-dir", str(tmp_path / "state")]
    process = subprocess.Popen(
        [sys.executable, "-m", "pluralllm.server", *serve], env={**os.environ, **settings}, stderr=subprocess.PIPE
    )
    try:
        receives(notify, "READY=1")
        log.rename(moved)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        receives(notify, "STOPPING=1")
        assert process.communicate(timeout=LIMIT_S)[1] == b""
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait(10)
    old, new = ([json.loads(line)["event"] for line in path.read_text().splitlines()] for path in (moved, log))
    assert "server.started" in old
    assert new[-1] == "server.stopped"


def test_a_coordinator_whose_loop_stands_still_is_not_healthy(tmp_path: Path, notify: socket.socket) -> None:
    state = tmp_path / "state"
    settings = {"NOTIFY_SOCKET": str(tmp_path / "notify"), **WATCHDOG}
    serve = ["serve", "--plain-text", "--listen", "127.0.0.1:0", "--state-dir", str(state)]
    process = subprocess.Popen([sys.executable, "-c", STUCK, *serve], env={**os.environ, **settings})
    try:
        receives(notify, "READY=1")
        address = (state / "address").read_text()
        with grpc.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            assert status_of(health) == health_pb2.HealthCheckResponse.SERVING
            remote = Remote.in_plain_text(address)
            remote.create_run("r", small_spec().canonical_json())
            remote.close()
            end_s = time.monotonic() + LIMIT_S
            while status_of(health) != health_pb2.HealthCheckResponse.NOT_SERVING:
                assert time.monotonic() < end_s
        while select.select([notify], [], [], 5 * SIGNS_EVERY_S)[0]:  # ends: no more signs for the watchdog come
            assert time.monotonic() < end_s
            notify.recv(4096)
        long_ago_s = time.time() - 2 * SILENT_FOR_S
        os.utime(state / "alive", (long_ago_s, long_ago_s))
        assert not select.select([notify], [], [], 5 * SIGNS_EVERY_S)[0]
        assert healthy(state).returncode == 3, "it has not renewed its sign"
    finally:
        process.kill()
        process.wait(10)


def status_of(health: health_pb2_grpc.HealthStub) -> int:
    return int(health.Check(health_pb2.HealthCheckRequest(), timeout=LIMIT_S).status)
