"""A rate limit that allows bursts (token bucket: RFC 2697, section 1)."""

from dataclasses import dataclass

ROUNDING = 1e-9  # sums of fractions of a token are not exact


@dataclass(slots=True)
class TokenBucket:
    """A bucket of at most `burst` tokens, to which `each_s` seconds add one. Each use takes one token. Times are in seconds.

    A clock that goes back adds nothing.
    """

    burst: float
    each_s: float
    tokens: float = -1.0  # below 0: the bucket was never used, and is full
    filled_s: float = 0.0

    def wait_s(self, now_s: float) -> float:
        """Takes a token and returns 0; if there is none, takes none and returns the time until there is one."""
        self.tokens = self._tokens_at(now_s)
        self.filled_s = now_s
        if self.tokens >= 1 - ROUNDING:
            self.tokens = max(0.0, self.tokens - 1)
            return 0.0
        return (1 - self.tokens) * self.each_s

    def is_full(self, now_s: float) -> bool:
        """Returns whether the bucket holds `burst` tokens, so that it is as good as a new one."""
        return self._tokens_at(now_s) >= self.burst

    def _tokens_at(self, now_s: float) -> float:
        if self.tokens < 0:
            return self.burst
        return min(self.burst, self.tokens + max(0.0, now_s - self.filled_s) / self.each_s)
