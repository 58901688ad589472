"""How often anybody may knock at the enrolment port. Pure: time comes as an argument."""

from collections import deque

from pluralllm.common.membership_errors import TooManyAttempts

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
