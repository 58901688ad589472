"""A client counts as connected while its poll is open, and for some time after its last message."""

import pytest

from pluralllm.common.errors.tree import SessionReplaced, StaleSession
from pluralllm.common.words.ids import ClientId, GroupName
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.runs.sessions import MAX_TAKEOVERS, TAKEOVER_WINDOW_S, TOLD_TAKEOVERS, Session, Sessions

ANN, BEN = ClientId("ann"), ClientId("ben")


def session(client: ClientId = ANN, instance: str = "first", seen_s: float = 100.0) -> Session:
    return Session(client, instance, GroupName("G"), GroupRole.TRAIN, 50, "test", seen_s)


@pytest.fixture
def sessions() -> Sessions:
    return Sessions(silence_s=7.0)


def test_a_client_is_connected_for_the_configured_time_after_its_last_message(sessions: Sessions) -> None:
    sessions.open(ann := session())
    assert ann.is_live(100.0)
    assert ann.is_live(107.0)
    assert not ann.is_live(107.001)
    ann.last_seen_s = 107.001
    assert ann.is_live(114.001)


def test_a_session_of_its_own_is_live_for_five_seconds() -> None:
    assert session().is_live(105.0)
    assert not session().is_live(105.001)


def test_takeovers_have_the_limits_of_the_documentation() -> None:
    assert (TAKEOVER_WINDOW_S, TOLD_TAKEOVERS, MAX_TAKEOVERS) == (600.0, 2, 100)


def test_an_open_poll_is_a_sign_of_life_however_long_it_is_held(sessions: Sessions) -> None:
    sessions.open(ann := session())
    ann.polls_open = 1
    assert ann.is_live(10_000.0)
    assert sessions.live(10_000.0) == (ann,)
    ann.polls_open = 2  # a repeated poll overlaps the first one
    assert ann.is_live(10_000.0)
    ann.polls_open = 0
    assert sessions.live(10_000.0) == ()


def test_live_sessions_are_sorted_and_silent_ones_are_left_out(sessions: Sessions) -> None:
    ben, ann = session(BEN, seen_s=100.0), session(ANN, seen_s=104.0)
    sessions.open(ben)
    sessions.open(ann)
    assert sessions.live(107.0) == (ann, ben)
    assert sessions.live(108.0) == (ann,)


def test_a_newer_daemon_replaces_the_session_and_the_older_one_learns_it(sessions: Sessions) -> None:
    sessions.open(session())
    assert sessions.check(ANN, "first") is sessions.of(ANN) is sessions.get(ANN)
    sessions.open(second := session(instance="second"))
    assert sessions.check(ANN, "second") is second
    with pytest.raises(SessionReplaced, match="ann"):
        sessions.check(ANN, "first")


def test_a_client_without_a_session_must_call_hello(sessions: Sessions) -> None:
    sessions.open(session())
    sessions.close(ANN)
    sessions.close(BEN)
    assert sessions.get(ANN) is None
    with pytest.raises(StaleSession, match="ann"):
        sessions.of(ANN)
    with pytest.raises(StaleSession, match="ann"):
        sessions.check(ANN, "first")
