"""The token buckets of members: what passes at once, what passes in the long run, and who waits for whom."""

import pytest

from pluralllm.common.errors.membership import TooManyCalls
from pluralllm.server.members import rates
from pluralllm.server.members.rates import Rate, Rates, rates_of_members

HELLO = Rate(per_s=2.0, burst=3)


def passed(limits: Rates, rpc: str, times_s: list[float], member: str = "ann") -> list[bool]:
    outcomes = []
    for now_s in times_s:
        try:
            limits.count(member, rpc, now_s)
            outcomes.append(True)
        except TooManyCalls:
            outcomes.append(False)
    return outcomes


def test_a_burst_passes_and_then_one_call_for_each_token() -> None:
    limits = Rates({"Hello": HELLO}, Rate(100, 100))
    assert passed(limits, "Hello", [5.0] * 5) == [True] * 3 + [False] * 2
    assert passed(limits, "Hello", [5.49, 5.5, 5.5, 6.0, 6.25]) == [False, True, False, True, False]
    assert passed(limits, "Hello", [100.0] * 4) == [True] * 3 + [False], "a bucket holds no more than its burst"


def test_a_refusal_says_when_the_next_token_comes_and_takes_none() -> None:
    limits = Rates({"Hello": HELLO}, Rate(100, 100))
    passed(limits, "Hello", [0.0] * 3)
    for now_s in (0.0, 0.1, 0.2):
        with pytest.raises(TooManyCalls) as refusal:
            limits.count("ann", "Hello", now_s)
        assert refusal.value.retry_s == pytest.approx(0.5 - now_s)
        assert (refusal.value.name, refusal.value.rpc) == ("ann", "Hello")
    limits.count("ann", "Hello", 0.5)


def test_members_and_calls_have_buckets_of_their_own() -> None:
    limits = Rates({"Hello": HELLO}, Rate(1.0, 1))
    passed(limits, "Hello", [0.0] * 10)
    assert passed(limits, "Hello", [0.0], "ben") == [True]
    assert passed(limits, "Poll", [0.0, 0.0]) == [True, False]


def test_a_steady_call_at_the_rate_is_never_refused() -> None:
    limits = Rates({}, Rate(50.0, 1))
    assert all(passed(limits, "GetRun", [number / 50 for number in range(10_000)]))


def test_a_clock_that_goes_back_gives_nobody_more_and_refuses_nobody_for_ever() -> None:
    limits = Rates({"Hello": HELLO}, Rate(1.0, 1))
    assert passed(limits, "Hello", [1000.0] * 4) == [True] * 3 + [False]
    assert passed(limits, "Hello", [1001.5] * 3) == [True] * 3


def test_full_buckets_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MAX_BUCKETS", 10)
    limits = Rates({}, Rate(1.0, 1))
    for number in range(100):
        limits.count(f"member-{number}", "Poll", number * 1.5)
    assert len(limits._buckets) <= 11


def test_members_renew_as_often_as_their_certificates_need_it_and_no_oftener_for_ever() -> None:
    day_s = 86_400.0
    limits = rates_of_members(50, 60, 30 * day_s)
    assert passed(limits, "Renew", [0.0] * 51) == [True] * 50 + [False]
    assert sum(passed(limits, "Renew", [float(second) for second in range(1, 3601)])) == 60
    assert passed(limits, "Hello", [0.0] * 11) == [True] * 10 + [False]
    assert passed(limits, "Poll", [0.0] * 501) == [True] * 500 + [False]
    short = rates_of_members(50, 60, 6.0)
    assert all(passed(short, "Renew", [4.0 * number for number in range(1000)]))


def test_links_to_the_page_which_are_written_down_for_ever_are_one_a_minute_in_the_long_run() -> None:
    limits = rates_of_members(50, 60, 30 * 86_400.0)
    assert passed(limits, "CreatePageLink", [0.0] * 11) == [True] * 10 + [False]
    assert sum(passed(limits, "CreatePageLink", [float(second) for second in range(1, 3601)])) == 60


@pytest.mark.parametrize("rpc", ["ListRounds", "ListAuditEvents"])
def test_calls_with_dear_answers_have_a_lower_rate(rpc: str) -> None:
    limits = rates_of_members(50, 60, 86_400.0)
    assert passed(limits, rpc, [0.0] * 21) == [True] * 20 + [False]
    assert passed(limits, rpc, [0.5, 0.5, 1.0]) == [True, False, True]
    slow = rates_of_members(1, 60, 86_400.0)
    assert passed(slow, rpc, [0.0] * 11) == [True] * 10 + [False], "never more than the other calls"
