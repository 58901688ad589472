"""The daemon's talk with its coordinator: Hello, then one poll after another. Only a final error ends the loop.

An error of a kind that nobody expected is logged with its place in the code, and the talk goes on after a pause.
"""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Protocol

import structlog

from pluralllm.client.daemon.pace import Backoff, Pace
from pluralllm.client.daemon.reactions import ENDS, FINAL
from pluralllm.client.daemon.renewal import Renewal
from pluralllm.client.link.rests import rest_s
from pluralllm.client.link.tasks import Answer
from pluralllm.client.process.instruments import CONNECTED, RETRIES
from pluralllm.common.errors.membership import (
    AwaitingApproval,
    CertificateRevoked,
    CertificateUnknown,
    TooManyCalls,
)
from pluralllm.common.errors.tree import AnswerInvalid, NoAnswer, PluralError, StaleSession
from pluralllm.common.process.pulse import Pulse

log = structlog.get_logger()

APPROVAL_WAIT_S = 5.0
BEAT_EVERY_S = 5.0
LOOK_EVERY_S = 1.0  # at the partner's files while a poll is held
ROUND_LIMIT_S = (
    300.0  # a poll is held for 55 s at most; the end of a run, a diagnosis and a full queue of the disk take longer
)


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

    async def take(self, answer: Answer) -> float | None:
        """Acts on an answer. Returns the pause before the next poll in seconds; None if the daemon must end."""


class Polling:
    """The loop of the talk, with its pauses. It beats the pulse of the process as long as it goes round."""

    def __init__(self, talk: Talk, renewal: Renewal, pace: Pace, pulse: Pulse) -> None:
        self._talk, self._renewal, self._pace, self._pulse = talk, renewal, pace, pulse
        self._backoff = Backoff()
        self._has_session = False

    async def run(self) -> None:
        """Talks until the daemon must end. Raises an error only if it is in FINAL, or if a diagnosis finds one of ENDS."""
        self._has_session = False
        while True:
            pause_s = await self._beating(self._round())
            if pause_s is None:
                return
            await self._rest(pause_s)

    async def _beating(self, work: Coroutine[Any, Any, float | None]) -> float | None:
        """Awaits one round. Beats the pulse meanwhile, but for ROUND_LIMIT_S only, so that a round that hangs is noticed."""
        doing = asyncio.ensure_future(work)
        try:
            for _ in range(round(ROUND_LIMIT_S / BEAT_EVERY_S)):
                self._pulse.beat()
                await asyncio.wait([doing], timeout=BEAT_EVERY_S)
                if doing.done():
                    break
            return await doing
        finally:
            doing.cancel()
            await asyncio.gather(doing, return_exceptions=True)

    async def _rest(self, pause_s: float) -> None:
        while True:
            self._pulse.beat()
            await asyncio.sleep(min(pause_s, BEAT_EVERY_S))
            pause_s -= BEAT_EVERY_S
            if pause_s <= 0:
                return

    async def _round(self) -> float | None:
        """Talks once. Returns the pause before the next round in seconds; None if the daemon must end."""
        try:
            return await self._talk_once()
        except Exception as error:  # noqa: BLE001 - it is logged, and only those in ENDS end the daemon
            return await self._pause_after(error)

    async def _talk_once(self) -> float | None:
        if await self._talk.must_greet() or not self._has_session:
            self._has_session = False
            await self._talk.greet()
            self._has_session = True
        answer = await self._asked()
        CONNECTED.set(1)
        if answer is None:
            self._has_session = False
            return 0.0
        pause_s = await self._talk.take(answer)
        self._backoff.reset()  # not before: an answer that nobody can act on comes again at once
        return pause_s

    async def _asked(self) -> Answer | None:
        """Polls. Returns None if Hello must say something new before the coordinator answers: no consent waits for a poll's end.

        The coordinator sends the answer to a poll that is cancelled again to the next one.
        """
        asking = asyncio.ensure_future(self._talk.ask())
        try:
            while not (await asyncio.wait([asking], timeout=LOOK_EVERY_S))[0]:
                if await self._talk.must_greet():
                    return None
            return await asking
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _pause_after(self, error: Exception) -> float:
        """Returns the pause after an error, in seconds. Raises the error that is final."""
        try:
            return await self._reaction(error)
        except ENDS:
            raise
        except Exception as later:  # noqa: BLE001 - of what was done about the first error
            return self._give_up_round(later)

    async def _reaction(self, error: Exception) -> float:
        """Does what an error asks for, and returns the pause after it, in seconds. Raises the error that is final."""
        match error:
            case StaleSession():
                self._has_session = False
                return self._pace.before_next_poll(0.0, time.monotonic(), is_new_task=False)
            case CertificateRevoked() | CertificateUnknown():
                await self._renewal.recover(error)
                return self._pace.before_next_poll(0.0, time.monotonic(), is_new_task=False)
            case AwaitingApproval():
                self._pace.log_reason(str(error))
                return APPROVAL_WAIT_S
            case TooManyCalls():
                self._pace.log_reason(str(error))
                return rest_s(error.retry_s)
            case _ if isinstance(error, FINAL):
                raise error
            case PluralError():
                return self._give_up_round(
                    await self._renewal.true_cause(error), has_answer=not isinstance(error, NoAnswer)
                )
            case _:
                return self._give_up_round(error)

    def _give_up_round(self, error: Exception, *, has_answer: bool = True) -> float:
        """Notes why a round has failed, and returns the pause before the next one, in seconds.

        has_answer: whether the coordinator may have answered; the session then begins anew.
        """
        CONNECTED.set(0)
        RETRIES.inc()
        self._has_session = self._has_session and not has_answer
        match error:
            case AnswerInvalid():
                self._pace.log_broken_protocol(error, self._talk.coordinator)
            case PluralError() | OSError():
                self._pace.log_reason(str(error) or type(error).__name__)  # a TimeoutError has no text
            case _:
                self._pace.log_broken_talk(error)
        return self._backoff.wait_s()
