"""Limits how often this client asks and logs, whatever the coordinator answers.

The coordinator says how long a client must wait. A coordinator that breaks, or that wants to do harm, says 0 each time: without
a limit of its own, the client would ask hundreds of times a second and fill its log with reasons.
"""

from pluralllm.common.process.token_bucket import TokenBucket

# A coordinator that works sends a client to the next poll within milliseconds when a task has ended, and otherwise holds a poll.
IDLE_POLLS, IDLE_POLL_EVERY_S = 10, 1.0  # polls that bring nothing new
TASKS, TASK_EVERY_S = 200, 0.05  # tasks: small models have rounds of some milliseconds
REASONS, REASON_EVERY_S = 5, 10.0  # log lines that say why the client waits


class Pace:
    """The client's own limits on polls, and on log lines about waiting."""

    def __init__(self) -> None:
        self._idle = TokenBucket(IDLE_POLLS, IDLE_POLL_EVERY_S)
        self._tasks = TokenBucket(TASKS, TASK_EVERY_S)
        self._reasons = TokenBucket(REASONS, REASON_EVERY_S)
        self._last_reason = ""

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

    def forget_reason(self) -> None:
        """Makes the next reason to wait a new one: the client has stopped waiting."""
        self._last_reason = ""
