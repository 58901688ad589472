"""The limit of calls to the enrolment port, and how often the log reports it."""

import pytest

from pluralllm.common.errors.membership import TooManyAttempts
from pluralllm.server.members import attempts
from pluralllm.server.members.attempts import Attempts, News, network_of


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


def test_holders_of_a_secret_have_no_limit_together() -> None:
    limit = Attempts(per_peer=1, together=None)
    for holder in range(100):
        limit.note(str(holder), 0.0)
    with pytest.raises(TooManyAttempts):
        limit.note("0", 0.0)


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        ("ipv4:192.0.2.1:5000", "ipv4:192.0.2.1"),
        ("ipv4:192.0.2.2:5000", "ipv4:192.0.2.2"),
        ("ipv6:%5B2001:db8:1:2:3::1%5D:5000", "ipv6:2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2:ffff:ffff:ffff:ffff]:1", "ipv6:2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:3::1]:1", "ipv6:2001:db8:1:3::/64"),
        ("ipv6:%5B::ffff:192.0.2.1%5D:9", "ipv4:192.0.2.1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:9", "ipv6:fe80::/64"),
        ("unix:/run/socket", "unix"),
        ("unix:", "unix"),
        ("", ""),
    ],
)
def test_an_address_counts_for_itself_or_for_its_ipv6_network(peer: str, network: str) -> None:
    assert network_of(peer) == network
