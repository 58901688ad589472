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

import pytest
from support.commands import SERVER, typed

LIMIT_S = 60.0


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
    settings = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "600000"}
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
    os.utime(state / "alive", (0, 0))
    assert healthy(state).returncode == 3


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
