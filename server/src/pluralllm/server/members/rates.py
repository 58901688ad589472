"""Limits on how often a member makes each kind of call. A member that calls too often is refused; the others wait for nothing.

The module reads no clock: callers pass the time.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pluralllm.common.errors.membership import TooManyCalls
from pluralllm.common.process.token_bucket import TokenBucket

PAGE_HISTORY, PAGE_AUDIT = "ReadPageHistory", "ReadPageAudit"  # requests to the web page, which are no RPCs
DEAR = ("ListRounds", "ListAuditEvents", PAGE_HISTORY, PAGE_AUDIT)  # one answer reads up to 500 rows
MAX_BUCKETS = 10_000  # above it, buckets that are full again are forgotten


@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket: `per_s` calls a second in the long run, and at most `burst` calls at once."""

    per_s: float
    burst: int


class Rates:
    """The token buckets of all members, one for each member and RPC.

    rates: the rate of an RPC, by its name. otherwise: the rate of each RPC without a rate of its own.
    """

    def __init__(self, rates: Mapping[str, Rate], otherwise: Rate) -> None:
        self._rates = rates
        self._otherwise = otherwise
        self._buckets: dict[tuple[str, str], TokenBucket] = {}

    def count(self, member: str, rpc: str, now_s: float) -> None:
        """Takes one token from a member's bucket for an RPC.

        Raises TooManyCalls if the bucket is empty; it says when the next token comes. A refused call takes no token.
        """
        rate = self._rates.get(rpc, self._otherwise)
        if len(self._buckets) >= MAX_BUCKETS:
            self._buckets = {key: bucket for key, bucket in self._buckets.items() if not bucket.is_full(now_s)}
        bucket = self._buckets.setdefault((member, rpc), TokenBucket(rate.burst, 1 / rate.per_s))
        if (wait_s := bucket.wait_s(now_s)) > 0:
            raise TooManyCalls(name=member, rpc=rpc, retry_s=round(wait_s, 3))


def rates_of_members(calls_per_second: float, hellos_per_minute: float, certificate_life_s: float) -> Rates:
    """Returns the rates of members: ten seconds' worth of each call may come at once.

    hellos_per_minute: the rate of Hello, which opens a session. certificate_life_s: validity of the members' certificates. Each
    renewal is written down for ever, so a member may renew once a minute in the long run, or five times in a certificate's life
    if that is more often. Fifty may come at once, because a thief of the key uses up the same tokens. A link to the page is
    written down for ever, too: one a minute, and ten at once. CompareQuestions has the same rate: each call
    compares a member's digests with those of all others, and further calls tell it only about newcomers.
    """
    hello = Rate(hellos_per_minute / 60, max(1, round(hellos_per_minute / 6)))
    renew = Rate(max(1 / 60, 5 / certificate_life_s), 50)
    dear_per_s = min(calls_per_second, max(2, calls_per_second / 25))
    dear = Rate(dear_per_s, max(1, round(10 * dear_per_s)))
    seldom = Rate(1 / 60, 10)
    return Rates(
        {
            "Hello": hello,
            "Renew": renew,
            "CreatePageLink": seldom,
            "CompareQuestions": seldom,
            **dict.fromkeys(DEAR, dear),
        },
        Rate(calls_per_second, max(1, round(10 * calls_per_second))),
    )
