"""Sends the worker's progress to the coordinator, which shows the progress to people."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from pluralllm.client.disclosure.outgoing import reported_progress
from pluralllm.common.errors.tree import PluralError

REPORT_EVERY_S = 1.0


class ProgressReports:
    """A callback (stage, done, total) that sends the progress to the coordinator, at most once a second.

    A report that fails is not repeated.
    """

    def __init__(self, report: Callable[[str, float], Awaitable[None]], on_stage: Callable[[str], None]) -> None:
        self._report = report
        self._on_stage = on_stage
        self._last_s = 0.0
        self._sending: set[asyncio.Task[None]] = set()

    def __call__(self, stage: str, done: int, total: int) -> None:
        self._on_stage(stage)
        now_s = time.monotonic()
        if now_s - self._last_s >= REPORT_EVERY_S:
            self._last_s = now_s
            sending = asyncio.create_task(self._send(*reported_progress(stage, done, total)))
            self._sending.add(sending)
            sending.add_done_callback(self._sending.discard)

    async def _send(self, stage: str, share: float) -> None:
        with contextlib.suppress(PluralError):
            await self._report(stage, share)
