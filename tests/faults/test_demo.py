"""The demo as a person runs it: to its end, and interrupted."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).parents[2]
pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(300)]


def demo(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(REPOSITORY / "deploy" / "demo.py"), "--out", str(folder), *arguments]
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, env=environment
    )


LOOK_EVERY_S = 0.2  # a look at all processes takes a core for a while, and the demo needs it


def left_over(folder: Path) -> list[str]:
    """Processes whose command line or working files name the demo's folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(folder) in line and process.pid != os.getpid():
            found.append(line)
    return found


def workers() -> set[int]:
    return {
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if "pluralllm.client.work.worker" in " ".join(process.info["cmdline"] or [])
    }


def test_the_demo_ends_by_itself_with_every_groups_alignment_risen(tmp_path: Path) -> None:
    before = workers()
    running = demo(tmp_path / "demo", "--rounds", "6")
    try:
        output, _ = running.communicate(timeout=280)
    finally:
        running.kill()
    assert running.returncode == 0, output
    changes = re.findall(r" (train|held out) +0\.\d+ +0\.\d+ +([+-]0\.\d+)", output)
    assert [role for role, _ in changes] == ["train"] * 6 + ["held out"] * 2, output
    assert all(change.startswith("+") for _, change in changes), output
    assert (tmp_path / "demo" / "model" / "model.safetensors").is_file()
    assert left_over(tmp_path) == []
    assert workers() <= before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_an_interrupted_demo_leaves_no_process(tmp_path: Path, number: signal.Signals, code: int) -> None:
    before = workers()
    running = demo(tmp_path / "demo")
    try:
        end_s = time.monotonic() + 60
        while workers() == before:  # the clients have started their own processes: the worst moment
            assert time.monotonic() < end_s, "no client has started"
            assert running.poll() is None, "the demo ended too early"
            time.sleep(LOOK_EVERY_S)
        running.send_signal(number)
        output, _ = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == code, output
    assert "Traceback" not in output
    end_s = time.monotonic() + 10
    while left_over(tmp_path) or not workers() <= before:
        assert time.monotonic() < end_s, left_over(tmp_path)
        time.sleep(LOOK_EVERY_S)
