"""The arithmetic of privacy loss: from noise to rho, from rho to (epsilon, delta), and back. It touches nothing.

The unit is one respondent: two surveys that differ by the presence of one person, with all that this person has answered, are
told apart only so far. Noise of the standard deviation sigma on counts that the person changes by at most D (L2) has
rho = D^2 / (2 sigma^2) (zero-concentrated differential privacy, zCDP). The rho of several releases add up.
Sources: Bun and Steinke 2016 (arXiv 1605.02065); Canonne, Kamath, Steinke 2020 (arXiv 2004.00010), Corollary 13.
"""

import math
from collections.abc import Iterable

# Bounds of the search for the order a of the Renyi divergence: log(a - 1) is in this interval.
LEAST_LOG_ORDER, MOST_LOG_ORDER = -20.0, 40.0
STEPS = 60  # of each search: more than the digits of a number
GOLDEN = (math.sqrt(5) - 1) / 2


def epsilon_of(rho: float, delta: float) -> float:
    """Returns the epsilon for which rho-zCDP implies (epsilon, delta)-differential privacy; 0 for rho = 0.

    The bound holds for every order a > 1: rho a + log(1 / (a delta)) / (a - 1) + log(1 - 1/a). The least of them is returned.
    Raises ValueError if rho is negative, or if delta is not between 0 and 1.
    """
    if not (rho >= 0 and 0 < delta < 1):
        raise ValueError(f"rho {rho} must be 0 or more, delta {delta} between 0 and 1")
    if rho == 0:
        return 0.0
    low, high = LEAST_LOG_ORDER, MOST_LOG_ORDER
    for _ in range(STEPS):
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        if _bound(rho, delta, left) <= _bound(rho, delta, right):
            high = right
        else:
            low = left
    return max(0.0, _bound(rho, delta, (low + high) / 2))


def _bound(rho: float, delta: float, log_order: float) -> float:
    """Returns the bound on epsilon for the order 1 + exp(log_order)."""
    above = math.exp(log_order)  # the order minus 1
    order = 1 + above
    return rho * order + (-math.log(delta) - math.log(order)) / above + math.log(above) - math.log(order)


def rho_of(epsilon: float, delta: float) -> float:
    """Returns the largest rho whose epsilon at `delta` is at most `epsilon`, rounded down."""
    low, high = 0.0, 1.0
    while epsilon_of(high, delta) <= epsilon:
        low, high = high, 2 * high
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if epsilon_of(middle, delta) <= epsilon else (low, middle)
    return low


def rho_used(totals: Iterable[float], kappa: int) -> float:
    """Returns the rho of all releases together, for a respondent who has answered at most `kappa` questions.

    totals: for each question, the sum of 1 / (2 sigma^2) over its releases, where sigma is for a person who adds at most 1. A
    person may have answered those questions that were released most precisely: the kappa largest totals count.
    """
    return math.fsum(sorted(totals, reverse=True)[:kappa])


def rho_of_question(totals: dict[str, float], released: Iterable[str], kappa: int, budget: float) -> float:
    """Returns the largest rho that each of the questions `released` can have so that all releases stay within the budget.

    totals: rho of each question so far. The result is 0 if nothing is left. It is rounded down.
    """
    names = frozenset(released)

    def fits(rho: float) -> bool:
        after = totals | {name: totals.get(name, 0.0) + rho for name in names}
        return rho_used(after.values(), kappa) <= budget

    low, high = 0.0, budget
    if not names or not fits(0.0):
        return 0.0
    if fits(high):
        return high
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def sigma_of(rho: float, sensitivity: float) -> float:
    """Returns the standard deviation of noise with this rho for one question, rounded up.

    sensitivity: the most that one respondent changes the question's counts (L2), in the unit of the result.
    """
    return math.nextafter(sensitivity / math.sqrt(2 * rho), math.inf)
