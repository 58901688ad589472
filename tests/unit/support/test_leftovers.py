"""No test leaves a process behind: one that would do so fails."""

import subprocess
import sys

import psutil
import pytest
from support import leftovers
from support.leftovers import nothing_left_over

pytestmark = pytest.mark.seconds

SLEEPS = [sys.executable, "-c", "import time; time.sleep(100)"]
# The child has no parent any more when this process has ended.
LEAVES = f"import subprocess; print(subprocess.Popen({SLEEPS!r}, stdout=subprocess.DEVNULL).pid)"


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "GRACE_S", 0.1)
    monkeypatch.setenv(leftovers.MARK, "restored afterwards")


def test_an_orphan_that_a_block_leaves_is_ended_and_told() -> None:
    block = nothing_left_over("a module")
    block.__enter__()
    done = subprocess.run([sys.executable, "-c", LEAVES], stdout=subprocess.PIPE, check=True, timeout=60)
    orphan = psutil.Process(int(done.stdout))
    with pytest.raises(AssertionError, match="has left processes running"):
        block.__exit__(None, None, None)
    assert orphan in psutil.wait_procs([orphan], timeout=10)[0]


def test_a_block_that_fails_leaves_nothing_either() -> None:
    started = []

    def fails() -> None:
        with nothing_left_over("a module"):
            started.append(subprocess.Popen(SLEEPS))
            raise RuntimeError("the test fails here")

    with pytest.raises(AssertionError):
        fails()
    assert started[0].wait(10) == -9


def test_a_block_that_cleans_up_passes() -> None:
    with nothing_left_over("a module"):
        process = subprocess.Popen(SLEEPS)
        process.kill()
        process.wait(10)
