"""The loop of a process that answers commands as JSON lines, one command at a time. worker_process.py is the other end.

A command on stdin is {"id", "do", "order"}; the answers on stdout are {"id", "progress" | "result" | "error"}.
The end of stdin means that the parent process is gone; this process then ends at once.
"""

import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TextIO

from pluralllm.client.work.commands import Command, OrderT, ResultT, fields_of
from pluralllm.common.errors.tree import PluralError, WorkerDied

Report = Callable[[str, int, int], None]  # stage, done, all; raises when the command is cancelled
CANCEL = "cancel"


class Cancelled(Exception):
    """The error that ends the work on a command after the parent process has cancelled the command."""


@dataclass(frozen=True, slots=True)
class Action(Generic[OrderT, ResultT]):
    """A command, and the function that does the command's work."""

    command: Command[OrderT, ResultT]
    work: Callable[[Report, OrderT], ResultT]

    def answer(self, report: Report, fields: dict[str, Any]) -> dict[str, Any]:
        """Does the work of one order, and returns the fields of the result.

        report: callback (stage, done, all) for the progress. fields: the order's fields, as JSON values.
        """
        return fields_of(self.work(report, self.command.read_order(fields)))


class CommandLoop:
    """Reads commands from one stream and writes answers to another one. It works on one command at a time."""

    def __init__(self, answers: TextIO, *actions: Action[Any, Any]) -> None:
        self._actions = {action.command.name: action for action in actions}
        self._answers = answers
        self._cancelled = threading.Event()
        self._commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read_commands(self, lines: TextIO) -> None:
        """Reads commands until the stream ends, then ends the process.

        This method runs in a thread of its own, so that a command can be cancelled in the middle of its work.
        """
        for line in lines:
            command = json.loads(line)
            if command["do"] == CANCEL:
                self._cancelled.set()
            else:
                self._cancelled.clear()
                self._commands.put(command)
        os._exit(0)  # the parent process is gone, so nobody needs the result

    def answer_for_ever(self) -> None:
        """Answers commands in the order in which they arrive. This method never returns."""
        while True:
            command = self._commands.get()
            self.answer(command["id"], command["do"], command["order"])

    def answer(self, number: int, name: str, order: dict[str, Any]) -> None:
        """Works on one command: writes its progress, then its result or its error.

        number: the command's id, which every answer repeats.
        """

        def report(stage: str, done: int, total: int) -> None:
            if self._cancelled.is_set():
                raise Cancelled
            self._write({"id": number, "progress": [stage, done, total]})

        try:
            self._write({"id": number, "result": self._action(name).answer(report, order)})
        except Cancelled:
            self._write({"id": number, "error": ["CANCELLED", {}]})
        except PluralError as error:
            self._write({"id": number, "error": [error.reason, error.facts]})
        except Exception as error:  # noqa: BLE001 - the parent process gets every error, and this process lives on
            traceback.print_exc()
            # The error's text stays here: a library's may quote a question, and the coordinator is sent this problem.
            died = WorkerDied(problem=f"{type(error).__name__}, this process's log says more")
            self._write({"id": number, "error": [died.reason, died.facts]})

    def _action(self, name: str) -> Action[Any, Any]:
        if name not in self._actions:
            raise WorkerDied(problem=f"the command {name!r} is unknown; the worker answers {', '.join(self._actions)}")
        return self._actions[name]

    def _write(self, answer: dict[str, Any]) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()


def answer_commands(*actions: Action[Any, Any]) -> None:
    """Answers commands from stdin until this process ends.

    stdout carries only the answers: all other output of the process goes to stderr.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    loop = CommandLoop(answers, *actions)
    threading.Thread(target=loop.read_commands, args=(sys.stdin,), daemon=True).start()
    loop.answer_for_ever()
