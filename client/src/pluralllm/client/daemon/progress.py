"""Sends the worker's progress to the coordinator, which shows the progress to people."""

import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from pluralllm.client.disclosure.outgoing import reported_progress
from pluralllm.common.errors.tree import PluralError

REPORT_EVERY_S = 1.0


class ProgressReports:
    """A callback (stage, done, total) that sends the progress to the coordinator, at most once a second.

    A report that fails is not repeated.
    """

    def __init__(
        self,
        report: Callable[[str, float], Awaitable[None]],
        on_stage: Callable[[str], None],
        spawn: Callable[[str, Coroutine[Any, Any, None]], object],
    ) -> None:
        """Stores the arguments. spawn: starts a background task with a name."""
        self._report, self._on_stage, self._spawn = report, on_stage, spawn
        self._last_s = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        self._on_stage(stage)
        now_s = time.monotonic()
        if now_s - self._last_s >= REPORT_EVERY_S:
            self._last_s = now_s
            self._spawn("a report of progress", self._send(*reported_progress(stage, done, total)))

    async def _send(self, stage: str, share: float) -> None:
        with contextlib.suppress(PluralError):
            await self._report(stage, share)
