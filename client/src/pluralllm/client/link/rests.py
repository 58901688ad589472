"""How long a caller rests after the coordinator has refused a call because the member calls too often."""

import math
import random

SHORTEST_REST_S, LONGEST_REST_S = 0.2, 60.0


def rest_s(retry_s: float) -> float:
    """Returns the time in seconds to wait after TooManyCalls. retry_s: the coordinator's wish, which may be any number."""
    jittered_s = retry_s * random.uniform(1.0, 1.5)  # noqa: S311 - jitter, no secret
    return min(LONGEST_REST_S, max(SHORTEST_REST_S, jittered_s)) if math.isfinite(jittered_s) else LONGEST_REST_S
