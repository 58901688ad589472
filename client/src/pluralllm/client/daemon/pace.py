"""Limits how often this client asks and logs, whatever the coordinator answers.

The coordinator says how long a client must wait. A coordinator that breaks, or that wants to do harm, says 0 each time: without
a limit of its own, the client would ask hundreds of times a second and fill its log with reasons.
"""

import random
import time

import structlog

from pluralllm.common.errors.tree import AnswerInvalid
from pluralllm.common.process.token_bucket import TokenBucket

log = structlog.get_logger()

# A coordinator that works sends a client to the next poll within milliseconds when a task has ended, and otherwise holds a poll.
IDLE_POLLS, IDLE_POLL_EVERY_S = 10, 1.0  # polls that bring nothing new
TASKS, TASK_EVERY_S = 200, 0.05  # tasks: small models have rounds of some milliseconds
REASONS, REASON_EVERY_S = 5, 10.0  # log lines that say why the client waits
CLOCK_SKEW_WARNING_S = 30.0
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.2, 15.0
FIRST_TRY_AGAIN_S = 2.0  # after a task has failed; the next time twice as long


class Backoff:
    """The waits between tries that fail: each is twice as long as the one before, up to a limit, and partly random.

    The first one is FIRST_BACKOFF_S unless `first_s` says otherwise.
    """

    def __init__(self, first_s: float | None = None) -> None:
        self._first_s = self._next_s = FIRST_BACKOFF_S if first_s is None else first_s

    def wait_s(self) -> float:
        """Returns the time to wait before the next try, in seconds, and doubles the wait after it."""
        wait_s, self._next_s = self._next_s, min(2 * self._next_s, LAST_BACKOFF_S)
        return wait_s * random.uniform(0.5, 1.5)  # noqa: S311 - jitter, no secret

    def reset(self) -> None:
        """Makes the next wait the shortest one: a try has succeeded."""
        self._next_s = self._first_s


class Pace:
    """The client's own limits on polls, and on log lines about waiting."""

    def __init__(self) -> None:
        self._idle = TokenBucket(IDLE_POLLS, IDLE_POLL_EVERY_S)
        self._tasks = TokenBucket(TASKS, TASK_EVERY_S)
        self._reasons = TokenBucket(REASONS, REASON_EVERY_S)
        self._last_reason = ""
        self._failed, self._again = "", Backoff(FIRST_TRY_AGAIN_S)  # the task that has failed here last

    def note_failed_try(self, task: str) -> None:
        """Notes that a task has failed here. The coordinator may give it again at once, and only a few times."""
        if task != self._failed:
            self._failed, self._again = task, Backoff(FIRST_TRY_AGAIN_S)

    def before_try(self, task: str) -> float:
        """Returns the time to wait before a try of a task, in seconds: 0 unless the task has failed here.

        What made it fail may last for some seconds, such as a full disk or a file that somebody restores.
        """
        return self._again.wait_s() if task == self._failed else 0.0

    def before_next_poll(self, asked_s: float, now_s: float, *, is_new_task: bool) -> float:
        """Returns the time to wait before the next poll, in seconds.

        asked_s: the wait that the coordinator asks for. is_new_task: whether the answer to the last poll was a task that the
        client does not work on yet.
        """
        bucket = self._tasks if is_new_task else self._idle
        return max(asked_s, bucket.wait_s(now_s))

    def is_worth_logging(self, reason: str, now_s: float) -> bool:
        """Returns whether a reason to wait is to be logged: it differs from the last one, and reasons do not change too often."""
        if reason == self._last_reason or self._reasons.wait_s(now_s) > 0:
            return False
        self._last_reason = reason
        return True

    def log_reason(self, reason: str) -> None:
        """Logs a reason for waiting, but only if it differs from the reason that was logged last, and not too often."""
        if self.is_worth_logging(reason, time.monotonic()):
            log.info("client.waiting", reason=reason)

    def log_broken_protocol(self, error: AnswerInvalid, coordinator: str) -> None:
        """Logs as an error, but not too often, that an answer breaks the protocol. The answer was not used."""
        if self.is_worth_logging(str(error), time.monotonic()):
            facts = {"call": error.call, "field": error.field, "problem": error.problem}
            log.error("coordinator.broke_protocol", coordinator=coordinator, **facts)

    def log_broken_talk(self, error: Exception) -> None:
        """Logs an error that nobody expected, with its place in the code, but not too often."""
        if self.is_worth_logging(f"{type(error).__name__}: {error}", time.monotonic()):
            log.error("client.talk_broken", exc_info=error)

    def log_clock(self, skew_s: float) -> None:
        """Logs how far the coordinator's clock is ahead of this machine's, if the two differ much."""
        if abs(skew_s) > CLOCK_SKEW_WARNING_S:
            log.warning("client.clock_differs", skew_s=round(skew_s, 1))

    def forget_reason(self) -> None:
        """Makes the next reason to wait a new one: the client has stopped waiting."""
        self._last_reason = ""
