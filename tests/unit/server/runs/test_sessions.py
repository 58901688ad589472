"""Sessions of clients: a newer daemon replaces an older one, and takeovers between two that live are counted."""

from dataclasses import replace

import pytest

from pluralllm.common.errors.tree import SessionReplaced, StaleSession
from pluralllm.common.words.ids import ClientId, GroupName
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.runs.sessions import MAX_TAKEOVERS, TAKEOVER_WINDOW_S, Session, Sessions

ANN = ClientId("ann")


def session(instance: str, at_s: float) -> Session:
    return Session(ANN, instance, GroupName("G"), GroupRole.TRAIN, 60, "1.0", at_s)


def test_a_daemon_that_takes_over_from_one_that_polls_is_counted() -> None:
    sessions, first, second = Sessions(5.0), session("a", 0.0), session("b", 10.0)
    assert not sessions.open(first)
    first.polls_open = 1
    assert sessions.open(second)
    with pytest.raises(SessionReplaced):
        sessions.check(ANN, "a")
    assert sessions.check(ANN, "b") is second
    assert second.takeovers_within_window(10.0) == 1


@pytest.mark.parametrize(("instance", "polls"), [("a", 1), ("b", 0)])
def test_hello_of_the_same_daemon_and_of_one_after_a_crash_are_no_takeovers(instance: str, polls: int) -> None:
    sessions, first, again = Sessions(5.0), session("a", 0.0), session(instance, 1.0)
    sessions.open(first)
    first.polls_open = polls
    assert not sessions.open(again)
    assert again.takeovers_s == ()


def swapped(times_s: list[float]) -> Session:
    """Returns the newest session after two daemons have taken over from each other at these times."""
    sessions, newest = Sessions(5.0), session("0", 0.0)
    sessions.open(newest)
    for number, at_s in enumerate(times_s, 1):
        newest.polls_open = 1
        newest = session(str(number), at_s)
        assert sessions.open(newest)
    return newest


def test_takeovers_are_counted_within_the_window_and_are_forgotten_after_it() -> None:
    newest = swapped([100.0, 200.0, 300.0])
    assert newest.takeovers_within_window(300.0) == 3
    assert newest.takeovers_within_window(100.0 + TAKEOVER_WINDOW_S) == 3
    assert newest.takeovers_within_window(100.1 + TAKEOVER_WINDOW_S) == 2
    assert newest.takeovers_within_window(300.1 + TAKEOVER_WINDOW_S) == 0


def test_takeovers_for_ever_take_a_bounded_place() -> None:
    newest = swapped([float(at) for at in range(3 * MAX_TAKEOVERS)])
    assert len(newest.takeovers_s) == MAX_TAKEOVERS
    assert newest.takeovers_s[-1] == 3 * MAX_TAKEOVERS - 1


def test_a_client_knows_no_private_rounds_unless_its_hello_says_so() -> None:
    assert not session("first", 1.0).is_ready_for_private_rounds


def test_a_client_without_a_session_must_say_hello() -> None:
    sessions = Sessions(5.0)
    with pytest.raises(StaleSession):
        sessions.check(ANN, "a")
    sessions.open(session("a", 0.0))
    sessions.close(ANN)
    with pytest.raises(StaleSession):
        sessions.check(ANN, "a")


def test_connected_clients_are_sorted_however_they_come_and_go() -> None:
    sessions = Sessions(5.0)
    for name in ("cat", "ann", "eve", "ben", "ann", "dan"):
        sessions.open(replace(session("1", 0.0), client=ClientId(name)))
    for name in ("cat", "nobody", "cat"):
        sessions.close(ClientId(name))
    silent = sessions.of(ClientId("eve"))
    silent.last_seen_s = -10.0
    assert [one.client for one in sessions.live(1.0)] == ["ann", "ben", "dan"]
    silent.polls_open = 1
    assert [one.client for one in sessions.live(1.0)] == ["ann", "ben", "dan", "eve"]
