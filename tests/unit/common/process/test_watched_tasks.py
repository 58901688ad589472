"""A background task that fails is started again, a bound ends the process, and no error is lost."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from pluralllm.common.errors.tree import BackgroundFailed, PluralError, StorageFull
from pluralllm.common.process.clock import FakeClock
from pluralllm.common.process.watched_tasks import FIRST_PAUSE_S, RESTARTS, WINDOW_S, WatchedTasks


class Watch:
    """Watched tasks with a fake clock, and the reasons with which they gave up."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.reasons: list[PluralError] = []
        self.tasks = WatchedTasks(self.clock, self.reasons.append)
        self.attempts = 0

    async def fail(self) -> None:
        self.attempts += 1
        raise ValueError("no space")

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def turn(self, pause_s: float) -> None:
        """Lets an attempt fail, and advances the clock to the next one."""
        await self.settle()
        self.clock.advance(pause_s)
        await self.settle()


@pytest.fixture
async def watch() -> AsyncIterator[Watch]:
    made = Watch()
    yield made
    await made.tasks.stop()


async def test_a_task_that_fails_starts_again_after_growing_pauses(watch: Watch) -> None:
    watch.tasks.keep("the loop", watch.fail)
    await watch.settle()
    assert watch.attempts == 1
    for number in range(2):
        watch.clock.advance(FIRST_PAUSE_S * 2**number * 0.99)
        await watch.settle()
        assert watch.attempts == number + 1, "not before its pause is over"
        watch.clock.advance(FIRST_PAUSE_S * 2**number * 0.02)
        await watch.settle()
        assert watch.attempts == number + 2


async def test_a_task_that_fails_too_often_ends_the_process_with_the_reason(watch: Watch) -> None:
    with capture_logs() as logs:
        task = watch.tasks.keep("the loop", watch.fail)
        for _ in range(RESTARTS):
            assert not watch.reasons
            await watch.turn(4.0)
    assert watch.attempts == RESTARTS + 1
    [reason] = watch.reasons
    assert isinstance(reason, BackgroundFailed)
    assert "the loop" in str(reason)
    assert "no space" in str(reason)
    assert task.done()
    assert [line["event"] for line in logs] == ["background.restarted"] * RESTARTS + ["background.gave_up"]


@pytest.mark.parametrize(
    ("pause_s", "gives_up"), [(WINDOW_S / RESTARTS - 0.1, True), (WINDOW_S / RESTARTS + 0.1, False)]
)
async def test_only_failures_within_the_window_count(watch: Watch, pause_s: float, gives_up: bool) -> None:
    watch.tasks.keep("the loop", watch.fail)
    for _ in range(3 * RESTARTS):
        await watch.turn(pause_s)
    assert bool(watch.reasons) is gives_up


async def test_a_task_that_returns_has_ended(watch: Watch) -> None:
    async def once() -> None:
        watch.attempts += 1

    await watch.tasks.keep("once", once)
    assert watch.attempts == 1


async def test_a_task_that_somebody_else_cancels_starts_again(watch: Watch) -> None:
    attempts: list[asyncio.Task[object]] = []

    async def wait() -> None:
        task = asyncio.current_task()
        assert task is not None
        attempts.append(task)
        await asyncio.Event().wait()

    watch.tasks.keep("the loop", wait)
    await watch.settle()
    attempts[0].cancel()
    await watch.turn(FIRST_PAUSE_S)
    assert len(attempts) == 2
    assert not attempts[1].done()


async def test_a_kept_task_that_its_owner_cancels_ends_and_may_clear_up(watch: Watch) -> None:
    cleared = False

    async def wait() -> None:
        nonlocal cleared
        try:
            await asyncio.Event().wait()
        finally:
            await watch.settle()
            cleared = True

    task = watch.tasks.keep("the loop", wait)
    await watch.settle()
    task.cancel()
    await asyncio.wait([task])
    assert cleared


async def test_stop_ends_every_task(watch: Watch) -> None:
    ended: list[str] = []

    async def wait(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    watch.tasks.keep("kept", lambda: wait("kept"))
    watch.tasks.spawn("once", wait("once"))
    watch.tasks.keep("fails", watch.fail)
    await watch.settle()
    await watch.tasks.stop()
    assert sorted(ended) == ["kept", "once"]
    watch.clock.advance(100.0)
    await watch.settle()
    assert watch.attempts == 1


@pytest.mark.parametrize(
    ("error", "event"),
    [(StorageFull(what="a model"), "background.failed"), (ValueError("a bug"), "background.broken")],
)
async def test_the_error_of_a_task_that_runs_once_is_logged(watch: Watch, error: Exception, event: str) -> None:
    async def fail() -> None:
        raise error

    with capture_logs() as logs:
        await asyncio.wait([watch.tasks.spawn("the collection", fail())])
        await watch.settle()
    [line] = logs
    assert (line["event"], line["work"]) == (event, "the collection")
    assert not watch.reasons
