"""The daemon's end of the pipe to its worker process: starts and stops the process, sends orders, and notices its death."""

import asyncio
import contextlib
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from pluralllm.client.work.command_loop import CANCEL
from pluralllm.client.work.commands import Command, OrderT, ResultT, fields_of
from pluralllm.client.work.worker_limits import NO_LIMITS
from pluralllm.common.errors.tree import Internal, PluralError, WorkerDied, leaves

log = structlog.get_logger()

WORKER_COMMAND = (sys.executable, "-m", "pluralllm.client.work.worker")
CANCEL_WAIT_S = 1.5  # a cancelled task stops within 2 s: by itself, or with its process
END_WAIT_S = 2.0
MAX_LINE_BYTES = 16 * 1024 * 1024

Progress = Callable[[str, int, int], None]  # stage, done, all


class WorkerProcess:
    """The worker process as the daemon uses it: one command at a time.

    The process keeps running between tasks, because importing torch takes seconds.
    """

    def __init__(self, command: Sequence[str] = WORKER_COMMAND) -> None:
        self._command = tuple(command)
        self.limits = NO_LIMITS  # the daemon sets the partner's
        self._process: asyncio.subprocess.Process | None = None
        self._numbers = itertools.count(1)
        self._one_at_a_time = asyncio.Lock()

    async def start(self) -> None:
        """Starts the worker process unless it runs already. The process imports torch while the daemon goes on."""
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=MAX_LINE_BYTES,
                start_new_session=True,  # Ctrl-C on a terminal is the daemon's to handle
            )
            log.debug("worker.started", pid=self._process.pid)

    @property
    def pid(self) -> int | None:
        """The process id of the worker; None if no process runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def ask(self, command: Command[OrderT, ResultT], order: OrderT, on_progress: Progress) -> ResultT:
        """Sends one order to the worker, and returns the worker's result. A cancelled call cancels the work.

        on_progress: callback (stage, done, total). Raises the error that the worker answered with, WorkerDied, or PolicyForbids
        if the process holds more memory than its limit. The process is then killed.
        """
        async with self._one_at_a_time:
            await self.start()
            number = next(self._numbers)
            try:
                await self._send({"id": number, "do": command.name, "order": fields_of(order)})
                return command.read_result(await self._watched_answer(number, on_progress))
            except asyncio.CancelledError:
                await self._cancel(number)
                raise

    async def stop(self) -> None:
        """Ends the worker: closes its input, and kills the process if it has not ended after END_WAIT_S seconds."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(END_WAIT_S):
                await process.wait()
        except TimeoutError:
            await self.kill()

    async def _send(self, message: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError) as error:
            await self.kill()  # its end, if it is not there yet: the next command then starts a new process
            raise WorkerDied(problem="it does not read its input") from error

    async def _watched_answer(self, number: int, on_progress: Progress) -> dict[str, Any]:
        """Waits for the answer to a command, or until the process holds too much memory."""
        assert self._process is not None
        answer = asyncio.create_task(self._answer(number, on_progress))
        memory = asyncio.create_task(self.limits.until_memory_exceeds(self._process.pid))
        try:
            await asyncio.wait([answer, memory], return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            await self.kill()
            raise memory.result()
        finally:
            answer.cancel()
            memory.cancel()
            await asyncio.gather(answer, memory, return_exceptions=True)

    async def _answer(self, number: int, on_progress: Progress) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        while True:
            line = await self._process.stdout.readline()
            if not line:
                code = await self._process.wait()
                raise WorkerDied(problem=f"exit code {code}")
            answer = json.loads(line)
            if answer["id"] != number:
                continue  # the answer to a command that was cancelled
            if "progress" in answer:
                on_progress(*answer["progress"])
            elif "error" in answer:
                raise _leaf(*answer["error"])
            else:
                result: dict[str, Any] = answer["result"]
                return result

    async def _cancel(self, number: int) -> None:
        """Asks the worker to cancel a command, and kills the process if no answer comes within CANCEL_WAIT_S seconds.

        number: the command's id.
        """
        try:
            async with asyncio.timeout(CANCEL_WAIT_S):
                await self._send({"id": number, "do": CANCEL})
                with contextlib.suppress(PluralError):
                    await self._answer(number, lambda *_: None)
        except (TimeoutError, WorkerDied):
            await self.kill()

    async def kill(self) -> None:
        """Kills the worker process. The next command starts a new process."""
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            log.warning("worker.killed", pid=process.pid)


def _leaf(reason: str, facts: dict[str, Any]) -> PluralError:
    """Returns the error that the worker named; Internal if this release has no error class for the code `reason`.

    facts: the values of the error's fields.
    """
    leaf = leaves().get(reason)
    return leaf(**facts) if leaf is not None else Internal(incident=reason)
