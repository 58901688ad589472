"""The shares that are likely, given counts with noise. They follow from the noised counts and from the noise's size alone.

Nothing private is read, so nothing more is told than the noised counts tell. Noised counts divided by their sum, negative ones as
0, would be shares too. But the predictors read logarithms, and those of small shares would be mostly noise.

The result is the posterior mean of z = log(share + FLOOR), under a prior in which every z is equally likely: small shares are
common in surveys. With small noise it is the share of the noised counts. FLOOR was chosen by groups that are no training and no
test groups of the benchmark (benchmarks/RESULTS.md, "Noised answers").

Shapes: K options, CELLS values of z.
"""

import math
from collections.abc import Sequence

import numpy as np

FLOOR = 0.003
CELLS = 64  # of the sum in place of the integral over z
REACH = 6  # standard deviations of the noise on either side, beyond which nothing is likely


def likely_shares(noised: Sequence[float], sigma: float, floor: float = FLOOR) -> tuple[float, ...]:
    """Returns the shares of a question's options from its counts with noise.

    noised: counts, which may be negative. sigma: standard deviation of the noise on each count, above 0. floor: FLOOR, except
    where benchmarks compare other numbers.
    The true number of respondents is not used, because it is private: the sum of the noised counts takes its place.
    """
    people = max(math.fsum(noised), sigma * math.sqrt(len(noised)))  # never below the noise of the sum
    seen, noise = np.asarray(noised) / people, sigma / people  # (K,)
    centre = seen.clip(0, 1)
    low = np.log((centre - REACH * noise).clip(min=0) + floor)  # (K,)
    high = np.log((centre + REACH * noise).clip(max=1) + floor)
    z = low + (high - low) * ((np.arange(CELLS)[:, None] + 0.5) / CELLS)  # (CELLS, K)
    log_likelihood = -0.5 * ((np.exp(z) - floor - seen) / noise) ** 2
    likelihood = np.exp(log_likelihood - log_likelihood.max(axis=0))
    shares = np.exp((likelihood * z).sum(axis=0) / likelihood.sum(axis=0)) - floor  # (K,)
    shares = shares.clip(min=0)  # rounding alone can make a share negative
    return tuple((shares / shares.sum()).tolist())
