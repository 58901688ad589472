"""Limits on attempts at the enrolment port, and on log entries about the attempts.

The classes read no clock: callers pass the time.
"""

import ipaddress
from collections import deque
from urllib.parse import unquote

from pluralllm.common.errors.membership import TooManyAttempts

WINDOW_S = 60.0
MAX_PEERS = 10_000
IPV6_PREFIX = 64  # bits; one subscriber has at least such a network, so its addresses count as one


class Attempts:
    """Counts and limits the attempts of the last minute, for each peer (network address) and for all peers together.

    per_peer: largest number of attempts of one peer. together: largest number of attempts of all peers; None if peers are
    known holders of a secret, whose number is limited anyway.
    """

    def __init__(self, per_peer: int, together: int | None) -> None:
        self._per_peer = per_peer
        self._together = together
        self._by_peer: dict[str, deque[float]] = {}
        self._all: deque[float] = deque()

    def note(self, peer: str, now_s: float) -> None:
        """Counts one attempt of a peer (network address).

        Raises TooManyAttempts if a limit is reached; the refused attempt does not count.
        """
        since_s = now_s - WINDOW_S
        if len(self._by_peer) > MAX_PEERS:
            self._by_peer = {other: times for other, times in self._by_peer.items() if times and times[-1] > since_s}
        of_peer = self._by_peer.setdefault(peer, deque())
        for times, limit in ((of_peer, self._per_peer), (self._all, self._together)):
            while times and times[0] <= since_s:
                times.popleft()
            if limit is not None and len(times) >= limit:
                raise TooManyAttempts(retry_s=times[0] - since_s)
        of_peer.append(now_s)
        self._all.append(now_s)


def network_of(peer: str) -> str:
    """Returns the network that a caller's address counts for: the address itself for IPv4, the /64 network for IPv6.

    peer: the address with its port, as gRPC writes it, for example ipv4:192.0.2.1:5000 or ipv6:%5B2001:db8::1%5D:5000. A text of
    another form is returned without the part after the last colon.
    """
    kind, _, rest = unquote(peer).partition(":")
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return peer.rpartition(":")[0] or peer
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return f"{kind}:{ipaddress.ip_network((address, IPV6_PREFIX), strict=False)}"
    return f"ipv4:{getattr(address, 'ipv4_mapped', None) or address}"


class News:
    """Allows one log entry a minute about each peer (network address), so that a stranger cannot fill the log."""

    def __init__(self) -> None:
        self._logged_s: dict[str, float] = {}  # time of the last log entry, by peer

    def is_news(self, peer: str, now_s: float) -> bool:
        """Returns whether to log an event of this peer (network address) now.

        After the result True, the result for this peer is False for a minute.
        """
        since_s = now_s - WINDOW_S
        if self._logged_s.get(peer, since_s) > since_s:
            return False
        if len(self._logged_s) >= MAX_PEERS:
            self._logged_s = {other: at_s for other, at_s in self._logged_s.items() if at_s > since_s}
            if len(self._logged_s) >= MAX_PEERS:
                return False
        self._logged_s[peer] = now_s
        return True
