"""The limit of calls to the enrolment port, and how often the log reports it."""

import pytest

from pluralllm.common.errors.membership import TooManyAttempts
from pluralllm.server.members import attempts
from pluralllm.server.members.attempts import Attempts, News


def test_a_peer_has_so_many_tries_in_any_minute() -> None:
    limit = Attempts(per_peer=3, together=100)
    for now_s in (0.0, 10.0, 20.0):
        limit.note("ann", now_s)
    with pytest.raises(TooManyAttempts) as found:
        limit.note("ann", 30.0)
    assert found.value.retry_s == 30.0
    limit.note("ben", 30.0)
    limit.note("ann", 60.0)


def test_all_together_have_a_limit_too() -> None:
    limit = Attempts(per_peer=3, together=5)
    for peer in range(5):
        limit.note(str(peer), 0.0)
    with pytest.raises(TooManyAttempts):
        limit.note("another", 1.0)
    limit.note("another", 60.0)


def test_a_refused_try_does_not_put_off_the_next_one() -> None:
    limit = Attempts(per_peer=1, together=10)
    limit.note("ann", 0.0)
    for now_s in (10.0, 20.0, 59.9):
        with pytest.raises(TooManyAttempts):
            limit.note("ann", now_s)
    limit.note("ann", 60.0)


def test_peers_long_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "MAX_PEERS", 3)
    limit = Attempts(per_peer=1, together=1000)
    for peer in range(50):
        limit.note(str(peer), peer * 30.0)
    assert len(limit._by_peer) <= 5


def test_a_peer_is_told_of_once_a_minute() -> None:
    news = News()
    assert [news.is_news("ann", now_s) for now_s in (0.0, 1.0, 59.9, 60.0, 60.1)] == [True, False, False, True, False]
    assert news.is_news("ben", 60.1)


def test_so_many_peers_that_they_would_fill_the_log_are_not_all_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "MAX_PEERS", 3)
    news = News()
    assert sum(news.is_news(str(peer), 1.0) for peer in range(50)) == 3
    assert news.is_news("another", 62.0)
