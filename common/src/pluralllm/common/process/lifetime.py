"""The first and the last instructions of a process: signals from the very start on, and an end without its native threads.

A process's `__main__` calls `begin` before it imports anything that takes a moment. This module imports only what Python itself
has loaded at its start.

Signals. The kernel drops a signal to the first process of a container (process 1) that has no handler, so a SIGTERM in the first
second would be lost, and Ctrl-C in the first second would show a stack trace. A long-running process lives on after SIGHUP, which
asks it to open its log file anew.

The end. Libraries written in Rust and C++ (the object store, gRPC, torch) keep threads that nobody can join. When such a thread
asks for Python's global lock while the interpreter is being taken down, Python 3.11 ends the thread by pthread_exit, whose
unwinding a Rust or C++ frame answers with abort(): the command has printed its answer, and dies of SIGABRT. So the interpreter
is never taken down: when Python has joined its own threads and has run all exit functions, the process ends at once.
"""

import atexit
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio  # takes a moment

INTERRUPTED, TERMINATED = 130, 143
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_begun: list[int | None] = []  # one item after `begin`: the exit code, None until it is known
_long_running: list[bool] = []  # one item after `begin`
_on_hangup: list[Callable[[], object]] = []


def begin(module: str, command: str, long_running: str = "") -> None:
    """Begins the process of a command. Does nothing in a process that only imports the module.

    module: the `__name__` of the command's `__main__`. command: the command's name, as a person types it. long_running: the
    subcommand that runs until a signal ends it; empty if there is none.
    """
    if module != "__main__" and os.path.basename(sys.argv[0]) != command:  # noqa: PTH119 - pathlib takes a moment
        return
    _open_standard_streams()
    runs_long = bool(long_running) and long_running in sys.argv[1:]
    _long_running.append(runs_long)
    _handle(signal.SIGTERM, _end_by_signal(0 if runs_long else TERMINATED))
    _handle(signal.SIGINT, _end_by_signal(INTERRUPTED))
    if runs_long:
        _handle(signal.SIGHUP, _hang_up)
    _begun.append(None)
    atexit.register(_end)  # the first exit function runs last


def runs_until_stopped() -> bool:
    """Returns whether this process runs until a signal ends it, and keeps a log."""
    return any(_long_running)


def begin_interruptible() -> None:
    """Lets Ctrl-C raise KeyboardInterrupt from now on, for a command that cleans up after itself."""
    if _begun and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def end_with(code: int) -> None:
    """Sets the exit code with which the process ends when Python has run all exit functions."""
    if _begun:
        _begun[0] = code


def ignore_stop_signals(loop: "asyncio.AbstractEventLoop") -> None:
    """Ignores SIGTERM and SIGINT from now on, because the process is ending. Call it at the end of what the loop runs.

    A loop that closes takes back its handlers: a second Ctrl-C would then end the process in the middle, with another exit code
    or with a stack trace.
    """
    for number in STOP_SIGNALS:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)


def on_hangup(act: Callable[[], object]) -> None:
    """Calls `act` for each SIGHUP that the process gets. `act` must return at once: it may interrupt any other code."""
    _on_hangup.append(act)


def _handle(number: signal.Signals, handler: Callable[[int, FrameType | None], object]) -> None:
    """Sets the handler of a signal, unless the process was started with the signal ignored, for example by nohup."""
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, handler)


def _end_by_signal(code: int) -> Callable[[int, FrameType | None], object]:
    return lambda _number, _frame: os._exit(code)


def _hang_up(_number: int, _frame: FrameType | None) -> None:
    for act in _on_hangup:
        act()


def _end() -> None:
    code = _begun[0]
    if code is None:
        return
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue  # nobody can be told
    os._exit(code)


def _open_standard_streams() -> None:
    """Opens /dev/null in the place of each standard stream that the process was started without.

    Otherwise the next file that the process opens would get the stream's number, and output would be written into this file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - a number
