"""Signals in the first moments of a process, and its end beside native threads."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.seconds

# Runs a command line; while it imports a module of this name for the first time, the process gets the signal.
SIGNALLED = """
import os, runpy, signal, sys

class Signals:
    def __init__(self, at):
        self.at = at
    def find_spec(self, name, path=None, target=None):
        for number in self.at.pop(name, ()):
            os.kill(os.getpid(), number)

module, at, *arguments = sys.argv[1:]
sys.meta_path.insert(0, Signals(eval(at)))
sys.argv = [module, *arguments]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
TERM, INT, HUP, KILL = int(signal.SIGTERM), int(signal.SIGINT), int(signal.SIGHUP), int(signal.SIGKILL)


def after(shell: str, *words: str) -> list[str]:
    """The words of a program that begins after a shell's commands: a function of Python would run in a fork beside threads."""
    return ["sh", "-c", f'{shell}; exec "$@"', "sh", *words]


def end(module: str, at: dict[str, list[int]], *arguments: str, shell: str = ":") -> tuple[int, str]:
    words = after(shell, sys.executable, "-c", SIGNALLED, module, repr(at), *arguments)
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("module", "at", "arguments", "code"),
    [
        ("pluralllm.server", {"typer": [TERM]}, ["serve"], 0),
        ("pluralllm.server", {"typer": [HUP], "structlog": [TERM]}, ["serve"], 0),
        ("pluralllm.server", {"typer": [INT]}, ["doctor"], 130),
        ("pluralllm.client", {"typer": [HUP], "structlog": [TERM]}, ["run"], 0),
        ("pluralllm.client", {"typer": [TERM]}, ["doctor"], 143),
        ("pluralllm.client.work.worker", {"numpy": [HUP, TERM, INT], "torch": [KILL]}, [], -KILL),
        ("pluralllm.cli", {"typer": [HUP], "rich": [TERM]}, ["model", "serve"], 0),
        ("pluralllm.cli", {"typer": [INT]}, ["runs"], 130),
        ("pluralllm.cli", {"typer": [HUP]}, ["runs"], -HUP),
    ],
)
def test_a_signal_in_the_first_second_counts_and_shows_no_stack_trace(
    module: str, at: dict[str, list[int]], arguments: list[str], code: int
) -> None:
    assert end(module, at, *arguments) == (code, "")


def test_a_signal_that_nohup_ignores_stays_ignored() -> None:
    ignored = "trap '' HUP INT"
    code, errors = end("pluralllm.server", {"typer": [INT, HUP]}, "serve", "--config", "none", shell=ignored)
    assert (code, "there is no such file" in errors) == (3, True)


# A long-running command whose loop has ended. Both signals come again while the process goes on to its end.
ENDING = """
import asyncio, os, signal
from pluralllm.common.process.lifetime import STOP_SIGNALS, begin, ignore_stop_signals
begin("__main__", "")
from pluralllm.common.process.exits import run_command

async def work():
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    os.kill(os.getpid(), signal.SIGINT)
    await stop.wait()
    ignore_stop_signals(loop)

def command():
    asyncio.run(work())
    for number in STOP_SIGNALS:
        os.kill(os.getpid(), number)
    print("ended")

run_command(command)
"""


def test_signals_that_come_again_while_the_process_ends_change_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")


# A command whose process dies as soon as its interpreter is taken down, as with a thread of a Rust or C++ library.
TORN_DOWN = """
import atexit, os, sys
from pluralllm.common.process.lifetime import begin
begin("__main__", "")
from pluralllm.common.process.exits import run_command

def command():
    atexit.register(lambda: print("exit function"))
    print("answer")
    sys.exit(int(sys.argv[1]))

class Torn:
    def __del__(self):
        os.abort()

sys.modules["kept"] = Torn()
run_command(command)
"""


@pytest.mark.parametrize("code", [0, 3])
def test_a_process_ends_after_its_exit_functions_and_before_the_interpreter_is_taken_down(code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TORN_DOWN, str(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "answer\nexit function\n", "")


def test_a_closed_standard_stream_is_never_another_file(tmp_path: Path) -> None:
    script = (
        "import os, sys\nfrom pluralllm.common.process.lifetime import begin\nbegin('__main__', '')\n"
        "from pluralllm.common.process.console import say\n"
        f"file = open({str(tmp_path / 'file')!r}, 'w')\nassert file.fileno() > 2\nsay('a')\nsay('b', err=True)\n"
    )

    words = after("exec <&- >&- 2>&-", sys.executable, "-c", script)
    assert subprocess.run(words, timeout=60, check=False).returncode == 0
    assert (tmp_path / "file").read_text() == ""
