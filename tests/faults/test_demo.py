"""The demo as a person runs it, to its end and interrupted."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from drill.trial import ALL

REPOSITORY = Path(__file__).parents[2]
pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("forked_starts")]


SIGHT = [  # of the coordinator
    ("who sent an update, and its size", "yes"),
    ("a single update", "no"),
    ("the sum of the updates", "yes"),
    ("answers, true or noised", "no"),
    ("scores of noised answers", "yes"),
]
LOOK_EVERY_S = 0.2  # listing the processes takes a core for a moment, and the demo needs it
WORKER = "pluralllm.client.work.worker"
INTERRUPTIONS = [
    pytest.param(
        number,
        id=number.name,
        marks=()
        if ALL
        else pytest.mark.skip(reason="tests/unit/test_demo.py tries the signals; all of the demo: make faults"),
    )
    for number in (signal.SIGINT, signal.SIGTERM)
]


class Family:
    """The processes that a demo has started, recorded while it runs; those that remain belong to this demo."""

    def __init__(self, running: "subprocess.Popen[str]") -> None:
        self._first = psutil.Process(running.pid)
        self._members: set[psutil.Process] = set()  # two are equal if pid and time of creation are

    def look(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self._members |= {self._first, *self._first.children(recursive=True)}

    def commands(self) -> list[str]:
        """Returns the command lines of the processes that still run."""
        lines = []
        for process in self._members:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    lines.append(" ".join(process.cmdline()))
        return lines

    def end(self) -> None:
        """Ends all processes, even after a failure."""
        self.look()
        for process in self._members:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@contextlib.contextmanager
def started(folder: Path, *arguments: str) -> "Iterator[tuple[subprocess.Popen[str], Family]]":
    """Starts a demo that writes to `folder`/output.txt; none of its processes outlives the block."""
    command = [sys.executable, str(REPOSITORY / "deploy" / "demo.py"), "--out", str(folder / "demo"), *arguments]
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200"}
    with (folder / "output.txt").open("w") as output:
        running = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True, env=environment
        )
    family = Family(running)
    try:
        yield running, family
    finally:
        family.end()
        running.wait(10)


def wait_for_end(running: "subprocess.Popen[str]", family: Family, limit_s: float) -> None:
    """Records the processes until the demo has ended."""
    end_s = time.monotonic() + limit_s
    while running.poll() is None:
        assert time.monotonic() < end_s, f"the demo has not ended within {limit_s} s"
        family.look()
        time.sleep(LOOK_EVERY_S)


def test_the_demo_ends_by_itself_with_every_groups_alignment_risen_and_no_update_read(tmp_path: Path) -> None:
    with started(tmp_path, "--rounds", "4") as (running, family):
        wait_for_end(running, family, 500)
        output = (tmp_path / "output.txt").read_text()
        assert running.returncode == 0, output
        groups = re.findall(r" (train|held out) +0\.\d+ +0\.\d+ +([+-]0\.\d+) +([+-]0\.\d+)", output)
        assert [role for role, _, _ in groups] == ["train"] * 6 + ["held out"] * 2, output
        assert all(change.startswith("+") for _, change, _ in groups), output
        assert all(float(gain) > 0.01 for role, _, gain in groups if role == "held out"), output
        assert "version 4 of run demo is the sum of 6 updates, byte for byte" in output
        assert re.findall(r"^ (\S.*?) +(yes|no) ", output, re.MULTILINE)[-5:] == SIGHT, output
        assert (tmp_path / "demo" / "model" / "model.safetensors").is_file()
        printed = re.search(r"^ +(\S+pluralllm-server verify .+)$", output, re.MULTILINE)
        assert printed is not None, output
        subprocess.run(shlex.split(printed[1]), check=True, capture_output=True, timeout=120)
        assert family.commands() == []


@pytest.mark.parametrize("number", INTERRUPTIONS)
def test_an_interrupted_demo_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    with started(tmp_path) as (running, family):
        end_s = time.monotonic() + 120
        while not any(
            WORKER in line for line in family.commands()
        ):  # the clients have started their workers, which is the worst moment
            assert time.monotonic() < end_s, "no client has started"
            assert running.poll() is None, "the demo ended too early"
            time.sleep(LOOK_EVERY_S)
            family.look()
        running.send_signal(number)
        wait_for_end(running, family, 120)
        output = (tmp_path / "output.txt").read_text()
        assert running.returncode == 130, output
        assert "Traceback" not in output
        end_s = time.monotonic() + 30
        while family.commands():
            assert time.monotonic() < end_s, family.commands()
            time.sleep(LOOK_EVERY_S)
