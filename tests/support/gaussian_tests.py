"""Statistical tests of noise against the Gaussian distribution. Each has a chance of 1e-6 to find fault with right noise."""

import itertools
import math
from collections.abc import Sequence
from statistics import NormalDist, fmean

SURE = NormalDist().inv_cdf(1 - 1e-6)  # a right mechanism is beyond it once in a million trials
BINS = 32


def failed_tests(noise: Sequence[float], sigma: float) -> set[str]:
    """The tests that noise fails as a sample of the Gaussian distribution with this standard deviation, at 1e-6 each."""
    normed = sorted(number / sigma for number in noise)
    failed = set()
    size = len(normed)
    spread = (math.fsum(z * z for z in normed) / size - 1) / math.sqrt(2 / size)
    if abs(spread) > SURE:
        failed.add("variance")
    if abs(fmean(normed)) * math.sqrt(size) > SURE:
        failed.add("mean")
    normal = NormalDist().cdf
    distance = max(max((i + 1) / size - normal(z), normal(z) - i / size) for i, z in enumerate(normed))
    if distance * math.sqrt(size) > math.sqrt(-math.log(1e-6 / 2) / 2):
        failed.add("kolmogorov-smirnov")
    counts = [0] * BINS
    for z in normed:
        counts[min(BINS - 1, int(normal(z) * BINS))] += 1
    chi_square = math.fsum((count - size / BINS) ** 2 for count in counts) / (size / BINS)
    degrees = BINS - 1  # the limit by Wilson and Hilferty 1931
    if chi_square > degrees * (1 - 2 / (9 * degrees) + SURE * math.sqrt(2 / (9 * degrees))) ** 3:
        failed.add("chi-square")
    together = math.fsum(one * other for one, other in itertools.pairwise(noise)) / (sigma * sigma * size)
    if abs(together) * math.sqrt(size) > SURE:
        failed.add("independence")
    return failed
