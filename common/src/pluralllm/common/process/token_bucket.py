"""A rate limit that allows bursts (token bucket: RFC 2697, section 1)."""

from dataclasses import dataclass


@dataclass(slots=True)
class TokenBucket:
    """A bucket of at most `burst` tokens, to which `each_s` seconds add one. Each use takes one token. Times are in seconds."""

    burst: float
    each_s: float
    tokens: float = -1.0  # below 0: the bucket was never used, and is full
    filled_s: float = 0.0

    def wait_s(self, now_s: float) -> float:
        """Takes a token and returns 0; if there is none, takes none and returns the time until there is one."""
        if self.tokens < 0:
            self.tokens = self.burst
        else:
            self.tokens = min(self.burst, self.tokens + max(0.0, now_s - self.filled_s) / self.each_s)
        self.filled_s = now_s
        if self.tokens >= 1:
            self.tokens -= 1
            return 0.0
        return (1 - self.tokens) * self.each_s
