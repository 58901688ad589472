"""A process that answers commands: JSON lines, one command at a time. The other end is worker_process.py.

A command on stdin ({"id", "do", ...}), answers on stdout ({"id", "progress" | "result" | "error"}). The end of stdin means that
whoever started it is gone, and ends this process at once.
"""

import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from pluralllm.common.errors.tree import PluralError, WorkerDied

Report = Callable[[str, int, int], None]  # stage, done, all; raises when the command is cancelled
Action = Callable[..., dict[str, Any]]  # report, then the command's arguments by name -> the result


class Cancelled(Exception):
    """Nobody wants the result any longer."""


class CommandLoop:
    """Answers one command at a time."""

    def __init__(self, actions: Mapping[str, Action], answers: TextIO) -> None:
        self._actions = actions
        self._answers = answers
        self._cancelled = threading.Event()
        self._commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def listen(self, lines: TextIO) -> None:
        """Runs in its own thread, so that a cancellation is seen in the middle of a step."""
        for line in lines:
            command = json.loads(line)
            if command["do"] == "cancel":
                self._cancelled.set()
            else:
                self._cancelled.clear()
                self._commands.put(command)
        os._exit(0)  # whoever started this is gone; nobody wants the rest

    def work(self) -> None:
        """Never returns."""
        while True:
            command = self._commands.get()
            number, action = command.pop("id"), self._actions[command.pop("do")]

            def report(stage: str, done: int, total: int, number: int = number) -> None:
                if self._cancelled.is_set():
                    raise Cancelled
                self._say({"id": number, "progress": [stage, done, total]})

            try:
                self._say({"id": number, "result": action(report, **command)})
            except Cancelled:
                self._say({"id": number, "error": ["CANCELLED", {}]})
            except PluralError as error:
                self._say({"id": number, "error": [error.reason, error.facts]})
            except Exception as error:  # noqa: BLE001 - whatever it is, the other end hears of it and lives on
                traceback.print_exc()
                # Its text stays here: a library's may quote a question, and this problem is told to the coordinator.
                died = WorkerDied(problem=f"{type(error).__name__}, this process's log says more")
                self._say({"id": number, "error": [died.reason, died.facts]})

    def _say(self, answer: dict[str, Any]) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()


def answer_commands(actions: Mapping[str, Action]) -> None:
    """The rest of this process's life. stdout belongs to the answers: whatever else prints goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    loop = CommandLoop(actions, answers)
    threading.Thread(target=loop.listen, args=(sys.stdin,), daemon=True).start()
    loop.work()
