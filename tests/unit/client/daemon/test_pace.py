"""The client's own limits on polls and on log lines, against a coordinator that sends it to the next poll at once."""

import pytest
from structlog.testing import capture_logs

from pluralllm.client.daemon.pace import (
    FIRST_BACKOFF_S,
    FIRST_TRY_AGAIN_S,
    IDLE_POLL_EVERY_S,
    IDLE_POLLS,
    LAST_BACKOFF_S,
    REASON_EVERY_S,
    REASONS,
    TASK_EVERY_S,
    TASKS,
    Backoff,
    Pace,
)
from pluralllm.common.errors.tree import AnswerInvalid


def polls_in(seconds_to_pass: float, asked_s: float, *, is_new_task: bool) -> int:
    pace, now_s, polls = Pace(), 0.0, 0
    while now_s < seconds_to_pass:
        now_s += pace.before_next_poll(asked_s, now_s, is_new_task=is_new_task) + 1e-4  # the call itself takes a moment
        polls += 1
    return polls


def test_a_coordinator_that_asks_for_no_wait_gets_one_poll_a_second() -> None:
    assert 60 <= polls_in(60, 0.0, is_new_task=False) <= 2 * 60 + IDLE_POLLS


def test_a_coordinator_that_changes_the_task_each_time_gets_some_polls_a_second() -> None:
    assert polls_in(60, 0.0, is_new_task=True) <= 2 * 60 / 0.05 + TASKS
    assert polls_in(1, 0.0, is_new_task=True) >= TASKS  # quick rounds of small models are not slowed


def test_the_limits_are_those_of_the_documentation() -> None:
    assert (IDLE_POLLS, IDLE_POLL_EVERY_S) == (10, 1.0)
    assert (TASKS, TASK_EVERY_S) == (200, 0.05)
    assert (REASONS, REASON_EVERY_S) == (5, 10.0)


@pytest.mark.parametrize(("is_new_task", "at_once", "every_s"), [(False, 10, 1.0), (True, 200, 0.05)])
def test_some_polls_come_at_once_and_the_next_one_waits_for_its_turn(
    is_new_task: bool, at_once: int, every_s: float
) -> None:
    pace = Pace()
    waits = [pace.before_next_poll(0.0, 5.0, is_new_task=is_new_task) for _ in range(at_once + 1)]
    assert waits == [0.0] * at_once + [pytest.approx(every_s)]
    assert pace.before_next_poll(0.0, 5.0, is_new_task=not is_new_task) == 0.0, (
        "tasks and idle polls do not share a limit"
    )


def test_the_wait_that_the_coordinator_asks_for_is_kept() -> None:
    assert Pace().before_next_poll(7.5, 0.0, is_new_task=False) == 7.5


def test_a_reason_is_logged_when_it_changes_and_not_each_time() -> None:
    pace = Pace()
    assert pace.is_worth_logging("a", 0.0)
    assert not pace.is_worth_logging("a", 1000.0)
    assert pace.is_worth_logging("b", 1000.0)
    pace.forget_reason()
    assert pace.is_worth_logging("b", 1000.0)


def test_five_reasons_are_logged_at_once_and_the_next_one_after_ten_seconds() -> None:
    pace = Pace()
    assert [pace.is_worth_logging(f"reason {number}", 5.0) for number in range(6)] == [True] * 5 + [False]
    assert not pace.is_worth_logging("reason 9", 14.9)
    assert pace.is_worth_logging("reason 9", 15.0)


def test_reasons_that_change_each_time_are_logged_once_in_ten_seconds() -> None:
    pace = Pace()
    logged = sum(pace.is_worth_logging(f"reason {tick}", tick * 0.1) for tick in range(1000))
    assert logged <= REASONS + 100 / REASON_EVERY_S + 1
    assert pace.is_worth_logging("the last one", 1000.0)


def test_waits_after_errors_double_from_a_fifth_of_a_second_to_a_quarter_of_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (FIRST_BACKOFF_S, LAST_BACKOFF_S) == (0.2, 15.0)
    bounds: set[tuple[float, float]] = set()

    def middle(least: float, most: float) -> float:
        bounds.add((least, most))
        return 0.75

    monkeypatch.setattr("pluralllm.client.daemon.pace.random.uniform", middle)
    backoff = Backoff()
    waits = [backoff.wait_s() for _ in range(9)]
    assert waits == pytest.approx([0.75 * wait_s for wait_s in (0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 15.0, 15.0)])
    assert bounds == {(0.5, 1.5)}, "clients that lost the same coordinator do not come back at the same moment"
    backoff.reset()
    assert backoff.wait_s() == pytest.approx(0.75 * 0.2)


def test_a_task_that_has_failed_waits_before_its_next_try_and_longer_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pluralllm.client.daemon.pace.random.uniform", lambda *_: 1.0)
    pace, waits = Pace(), []
    for _ in range(4):
        waits.append(pace.before_try("r1"))
        pace.note_failed_try("r1")
    assert waits == pytest.approx([0.0, 2.0, 4.0, 8.0])
    assert FIRST_TRY_AGAIN_S == 2.0
    assert pace.before_try("r2") == 0.0
    pace.note_failed_try("r2")
    assert [pace.before_try("r1"), pace.before_try("r2")] == pytest.approx([0.0, 2.0])


def test_a_reason_and_a_broken_protocol_are_logged_once() -> None:
    pace, broken = Pace(), AnswerInvalid(call="Poll", field="task", problem="is odd")
    with capture_logs() as logs:
        for _ in range(2):
            pace.log_reason("no run is open")
        for _ in range(2):
            pace.log_broken_protocol(broken, "host:1")
        for _ in range(2):
            pace.log_broken_talk(ZeroDivisionError("a bug"))
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [
        ("client.waiting", "info"),
        ("coordinator.broke_protocol", "error"),
        ("client.talk_broken", "error"),
    ]
    assert (logs[0]["reason"], logs[1]["field"], logs[1]["coordinator"]) == ("no run is open", "task", "host:1")


def test_clocks_that_differ_by_more_than_half_a_minute_are_logged() -> None:
    with capture_logs() as logs:
        for skew_s in (0.0, 30.0, -30.0, 30.04, -30.06):
            Pace().log_clock(skew_s)
    assert [(line["event"], line["skew_s"]) for line in logs] == [
        ("client.clock_differs", 30.0),
        ("client.clock_differs", -30.1),
    ]
