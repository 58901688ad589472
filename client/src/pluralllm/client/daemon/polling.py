"""The daemon's talk with its coordinator: Hello, then one poll after another. Only a final error ends the loop."""

import asyncio
import time
from typing import Protocol

import structlog

from pluralllm.client.daemon.pace import Backoff, Pace
from pluralllm.client.daemon.reactions import FINAL
from pluralllm.client.daemon.renewal import Renewal
from pluralllm.client.link.tasks import Answer
from pluralllm.client.process.instruments import CONNECTED, RETRIES
from pluralllm.common.errors.membership import AwaitingApproval, CertificateRevoked
from pluralllm.common.errors.tree import AnswerInvalid, NoAnswer, PluralError, StaleSession

log = structlog.get_logger()

APPROVAL_WAIT_S = 5.0


class Talk(Protocol):
    """The steps of the talk; the daemon implements them."""

    @property
    def coordinator(self) -> str:
        """The address that new calls go to."""

    async def must_greet(self) -> bool:
        """Returns whether the coordinator must learn something that only Hello says."""

    async def greet(self) -> None:
        """Opens a session: calls Hello."""

    async def ask(self) -> Answer:
        """Polls, and returns the coordinator's answer."""

    async def take(self, answer: Answer) -> bool:
        """Acts on an answer. Returns whether the daemon must end."""


class Polling:
    """The loop of the talk, with its pauses after errors."""

    def __init__(self, talk: Talk, renewal: Renewal, pace: Pace) -> None:
        self._talk, self._renewal, self._pace = talk, renewal, pace
        self._backoff = Backoff()
        self._has_session = False

    async def run(self) -> None:
        """Talks until the daemon must end. Raises an error only if it is in FINAL, or if a diagnosis finds it final."""
        self._has_session = False
        while True:
            try:
                if await self._talk_once():
                    return
            except (PluralError, OSError) as error:
                await self._pause_after(error)

    async def _talk_once(self) -> bool:
        if await self._talk.must_greet() or not self._has_session:
            self._has_session = False
            await self._talk.greet()
            self._has_session = True
        answer = await self._talk.ask()
        CONNECTED.set(1)
        self._backoff.reset()
        return await self._talk.take(answer)

    async def _pause_after(self, error: PluralError | OSError) -> None:
        """Waits after an error before the next try. Raises the error that is final."""
        match error:
            case StaleSession():
                self._has_session = False
                await asyncio.sleep(self._pace.before_next_poll(0.0, time.monotonic(), is_new_task=False))
            case CertificateRevoked():
                await self._renewal.recover(error)
                await asyncio.sleep(self._pace.before_next_poll(0.0, time.monotonic(), is_new_task=False))
            case AwaitingApproval():
                self._pace.log_reason(str(error))
                await asyncio.sleep(APPROVAL_WAIT_S)
            case _ if isinstance(error, FINAL):
                raise error
            case _:
                CONNECTED.set(0)
                if isinstance(error, AnswerInvalid):
                    self._pace.log_broken_protocol(error, self._talk.coordinator)
                else:
                    self._pace.log_reason(str(await self._renewal.true_cause(error)))
                await asyncio.sleep(self._backoff.wait_s())
                RETRIES.inc()
                self._has_session = self._has_session and isinstance(error, NoAnswer)
