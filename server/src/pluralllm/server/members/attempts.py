"""How often anybody may knock at the enrolment port, and how often that is told. Pure: time comes as an argument."""

from collections import deque

from pluralllm.common.errors.membership import TooManyAttempts

WINDOW_S = 60.0
MAX_PEERS = 10_000


class Attempts:
    """A sliding minute for each peer and for all of them."""

    def __init__(self, per_peer: int, together: int) -> None:
        self._per_peer = per_peer
        self._together = together
        self._by_peer: dict[str, deque[float]] = {}
        self._all: deque[float] = deque()

    def note(self, peer: str, now_s: float) -> None:
        """Counts one attempt. Raises TooManyAttempts, which counts nothing."""
        since_s = now_s - WINDOW_S
        if len(self._by_peer) > MAX_PEERS:
            self._by_peer = {known: times for known, times in self._by_peer.items() if times and times[-1] > since_s}
        mine = self._by_peer.setdefault(peer, deque())
        for times, limit in ((mine, self._per_peer), (self._all, self._together)):
            while times and times[0] <= since_s:
                times.popleft()
            if len(times) >= limit:
                raise TooManyAttempts(retry_s=times[0] - since_s)
        mine.append(now_s)
        self._all.append(now_s)


class News:
    """What a peer does is told once a minute: whoever knocks must not be able to fill the log."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}

    def is_news(self, peer: str, now_s: float) -> bool:
        """Whether to tell it now; what is told is not news for a minute."""
        since_s = now_s - WINDOW_S
        if self._told.get(peer, since_s) > since_s:
            return False
        if len(self._told) >= MAX_PEERS:
            self._told = {known: at_s for known, at_s in self._told.items() if at_s > since_s}
            if len(self._told) >= MAX_PEERS:
                return False
        self._told[peer] = now_s
        return True
