"""The noise: a discrete Gaussian on the counts of a question, drawn by the library OpenDP from secure random numbers.

The counts are first written as whole numbers of 1/1024: floor(1024 c + 1/2). A person with one answer of weight 1 changes one of
these numbers by exactly 1024. A person with a weight, or with several answers that share the one that a person adds, changes each
number that the answers touch by at most 1 more than in the exact counts, because of the rounding. The sensitivity includes this.
Noise on whole answers instead would not be safe: rounding could turn half an answer to each of four options into four answers.
"""

import math
from collections.abc import Callable, Sequence

from pluralllm.client.privacy.accountant import sigma_of
from pluralllm.common.process.extras import need_noise

UNIT = 1024  # parts of one answer; a power of 2, so that the product with a whole count is exact
LARGEST_COUNT = 2**40  # of one option; far below the numbers that OpenDP would cut off

Draw = Callable[[Sequence[int], float], list[int]]  # whole numbers, standard deviation in the same unit -> with noise


def sensitivity(options: int, max_weight: float) -> float:
    """Returns the most that one respondent changes the whole numbers of one question (L2), in parts of one answer.

    options: number of options. max_weight: the most that one respondent adds to the counts of the question.
    """
    rounding = 2 * math.sqrt(options)  # 1 of each number, and 1 where a sum of weights was rounded before
    return UNIT * max_weight + rounding


def noise_on_counts(options: int, rho: float, max_weight: float) -> float:
    """Returns the standard deviation of the noise on each count of a question. It tells nothing about the counts.

    options: number of options. rho: of the question, for each respondent.
    """
    return sigma_of(rho, sensitivity(options, max_weight)) / UNIT


def noised_counts(counts: Sequence[float], rho: float, max_weight: float, draw: Draw) -> tuple[float, ...]:
    """Returns a question's counts with noise of `rho` for each respondent. Counts may become negative.

    draw: adds the noise; `opendp_draw` except in tests.
    Raises ValueError for a count that is negative or too large.
    """
    if not all(0 <= count <= LARGEST_COUNT for count in counts):
        raise ValueError(f"a count is not between 0 and {LARGEST_COUNT}")
    whole = [math.floor(UNIT * count + 0.5) for count in counts]
    drawn = draw(whole, UNIT * noise_on_counts(len(counts), rho, max_weight))
    return tuple(number / UNIT for number in drawn)


def opendp_draw(numbers: Sequence[int], sigma: float) -> list[int]:
    """Adds discrete Gaussian noise to each number. Raises ExtraMissing if OpenDP is not installed."""
    need_noise()
    import opendp.prelude as dp  # noqa: PLC0415 - a large library, which only a release needs

    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="f64")
    drawn: list[int] = (space >> dp.m.then_gaussian(scale=sigma))(list(numbers))
    return drawn
