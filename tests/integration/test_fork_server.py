"""Processes that the tests have forked behave as those that they stand for."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from support.process_harness import free_port

pytestmark = pytest.mark.usefixtures("forked_starts")
LIMIT_S = 60.0


def typed(folder: Path, *words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", *words]
    homes = {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}  # of the administrator's identity
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env={**os.environ, **homes}, text=True, stdout=pipe, stderr=pipe)


def serving(folder: Path) -> "subprocess.Popen[str]":
    """Returns the process of a coordinator that serves."""
    listen = ["--listen", f"127.0.0.1:{free_port()}", "--enrolment-listen", f"127.0.0.1:{free_port()}"]
    assert typed(folder, "pluralllm.server", "init", "--host", "127.0.0.1").wait(LIMIT_S) == 0
    process = typed(folder, "pluralllm.server", "serve", *listen)
    wait_for((folder / "pluralllm-state" / "address").exists)
    return process


def wait_for(holds: Callable[[], bool]) -> None:
    end_s = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def test_a_fork_has_the_arguments_the_folder_the_streams_and_the_exit_code(tmp_path: Path) -> None:
    process = typed(tmp_path, "pluralllm.client", "data", "check", "absent.jsonl")
    output, errors = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, output) == (3, "")
    assert "absent.jsonl" in errors
    process = typed(tmp_path, "pluralllm.client", "data", "sample", "--out", "survey", "--groups", "2")
    assert process.wait(LIMIT_S) == 0
    assert len(list((tmp_path / "survey").iterdir())) > 1


def test_a_signal_reaches_the_fork_which_then_ends_as_it_would(tmp_path: Path) -> None:
    process = serving(tmp_path)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0
    assert "server.stopped" in log


def test_the_fork_of_a_killed_process_is_killed(tmp_path: Path) -> None:
    process = serving(tmp_path)
    (pid,) = map(int, (tmp_path / "pluralllm-state" / "lock").read_text().split())
    assert pid != process.pid
    process.kill()
    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    assert process.wait(LIMIT_S) == -signal.SIGKILL
