"""Updates as numbers modulo 2^32, whose sum never overflows, and the tail: 64 numbers about the update, summed like its values.

A delta is scaled down to the L2 norm `clip_norm`, multiplied by the member's weight and by a power of two, and rounded at random
without bias (as in Alistarh et al. 2017, arXiv 1610.02132, section 3.1). Each number then lies in -limit .. limit, and
members * limit < 2^31: the sum of all members' numbers is exact, and its sign is that of the number modulo 2^32.
A term of a sum (kernel-sums/1) is neither scaled down nor weighted, because it would be a term of another problem: a longer one
is refused.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.errors.private_rounds import SumImplausible, TermTooLong
from pluralllm.common.errors.tree import NotFinite
from pluralllm.common.weights.update_format import TAIL

HALF = 2**31 - 256  # the sum of all numbers stays below it, on either side of 0
BINS = 32  # of the histogram of scores, each of width 1/32
METRIC_STEPS = 2**12  # steps of a loss or a distance in one unit
MOST_METRIC = 16.0  # of a loss
MOST_DISTANCE = 1.0  # a mean of Jensen-Shannon distances is at most sqrt(ln 2) = 0.83
SCORE_STEPS = 2**20
NORM_SLACK = 1 + 2**-10  # the norm of a mean may be so much above clip_norm, because of the rounding
SLICE = 256 * 1024  # numbers that are quantised at a time
PIECE = 16 * 1024  # numbers that are computed at a time: their float64 values stay in the processor's cache

# Places in the tail. The others are 0 in every update.
WEIGHT, UPDATES, CLIPPED = 0, 1, 2
LOSS_WEIGHT, LOSS, DISTANCE_WEIGHT, DISTANCE = 3, 4, 5, 6
SCORED, SCORE, HISTOGRAM = 7, 8, slice(16, 16 + BINS)
NOT_ZERO = 9  # of terms of sums
ZEROS = (slice(10, 16), slice(16 + BINS, TAIL))


@dataclass(frozen=True, slots=True)
class Ring:
    """The scale of one round's numbers, which every member and the coordinator compute alike."""

    members: int  # of the round, whether they deal or not
    clip_norm: float  # largest L2 norm of a member's delta
    most_weight: int  # weight of a delta that counts in full; these two are those of own_weights.weight_bounds
    least_weight: int = 1
    adds_terms: bool = False  # whether the updates are terms of sums: each counts in full, and none is scaled down

    @property
    def scale(self) -> float:
        """Number of steps in one unit of a delta: the greatest power of two with members * clip_norm * scale <= HALF."""
        ratio = Fraction(HALF) / (self.members * Fraction(self.clip_norm))
        exponent = ratio.numerator.bit_length() - ratio.denominator.bit_length()
        return math.ldexp(1.0, exponent if ratio >= Fraction(2) ** exponent else exponent - 1)

    @property
    def limit(self) -> int:
        """Largest absolute value of a member's number."""
        return math.floor(Fraction(self.clip_norm) * Fraction(self.scale))

    def step_share(self, weight: int, values: int) -> float:
        """Returns the root mean square of the numbers, in steps, of a delta of the largest norm with `values` values.

        Rounding moves a number by up to one step: below a few steps most of the update is rounding error.
        """
        return self.clip_norm * self.scale * weight / self.most_weight / math.sqrt(max(values, 1))


@dataclass(frozen=True, slots=True)
class Clipping:
    """The factor that brings a delta to at most the largest norm, and whether it changes the delta."""

    factor: float
    is_clipped: bool


def clipping_of(delta: NDArray[np.float32], ring: Ring) -> Clipping:
    """Returns how a delta is scaled down. Shape: delta (n,).

    Raises NotFinite if a value is NaN or infinite; TermTooLong for a term of a sum that would have to be scaled down.
    """
    squares, exact = 0.0, np.empty(PIECE)
    for start in range(0, delta.size, PIECE):
        piece = delta[start : start + PIECE]
        values = exact[: piece.size]
        values[:] = piece
        squares += float(values @ values)
    if not math.isfinite(squares):  # the square of a float32 is a finite float64, and so is the sum of all of them
        raise NotFinite(tensor="the delta", count=int((~np.isfinite(delta)).sum()))
    norm = math.sqrt(squares)
    is_clipped = norm > ring.clip_norm
    if is_clipped and ring.adds_terms:
        raise TermTooLong(norm=norm, limit=ring.clip_norm)
    return Clipping(ring.clip_norm / norm if is_clipped else 1.0, is_clipped)


def quantised(
    values: NDArray[np.float32], clipping: Clipping, weight: int, ring: Ring, rng: np.random.Generator
) -> NDArray[np.uint32]:
    """Returns a slice of a delta as numbers modulo 2^32, rounded at random so that the expected number is exact.

    weight: 1 .. ring.most_weight; it does not change a term of a sum. rng: gives one number of [0, 1) for each value, in order.
    Shapes: values (n,), result (n,). float32 in, float64 between. Raises ValueError for a weight out of range.
    """
    if not 1 <= weight <= ring.most_weight:
        raise ValueError(f"the weight is {weight}, must be 1 to {ring.most_weight}")
    share = 1.0 if ring.adds_terms else weight / ring.most_weight
    factor = clipping.factor * share * ring.scale
    limit = float(ring.limit)
    numbers = np.empty(values.size, np.int32)
    exact, drawn = np.empty(PIECE), np.empty(PIECE)
    for start in range(0, values.size, PIECE):
        piece = values[start : start + PIECE]
        steps, chance = exact[: piece.size], drawn[: piece.size]
        np.multiply(piece, factor, out=steps, dtype=np.float64)
        steps += rng.random(out=chance)
        np.floor(steps, out=steps)
        np.minimum(steps, limit, out=steps)
        np.maximum(steps, -limit, out=steps)
        numbers[start : start + PIECE] = steps
    return numbers.view(np.uint32)


def decoded_mean(total: NDArray[np.uint32], ring: Ring, weight: int) -> NDArray[np.float64]:
    """Returns a slice of the weighted mean of the deltas. total: the slice of the sum. weight: sum of the members' weights."""
    mean: NDArray[np.float64] = total.view(np.int32).astype(np.float64)
    mean *= (
        ring.most_weight / ring.scale
    )  # exact: a sum has 31 bits, a weight at most 21, and the scale is a power of two
    mean /= weight
    return mean


def decoded_sum(total: NDArray[np.uint32], ring: Ring) -> NDArray[np.float64]:
    """Returns a slice of the sum of terms, which is exact. total: the slice of the sum."""
    exact: NDArray[np.float64] = total.view(np.int32).astype(np.float64)
    exact /= ring.scale  # a power of two
    return exact


@dataclass(frozen=True, slots=True)
class MemberTail:
    """The facts about one member's update that are summed with it. None for a number that the policy keeps back."""

    weight: int  # 1 .. ring.most_weight; of a term of a sum: the number of questions behind it
    is_clipped: bool
    metric_weight: int  # weight of loss and distance in their means, 1 .. most_metric_weight
    most_metric_weight: int  # aggregation.max_examples
    loss: float | None = None
    distance: float | None = None  # alignment distance of the base version
    score: float | None = None  # alignment score of the base version on withheld questions, when due
    distance_weight: int | None = None  # of the distance, if it is not metric_weight
    not_zero: bool = False  # whether the update is a term of a sum, and not all of its values are 0

    def words(self) -> NDArray[np.uint32]:
        """Returns the tail's numbers. Shape: (64,). Raises NotFinite if a loss, a distance or a score is NaN or infinite."""
        tail = np.zeros(TAIL, np.uint32)
        tail[WEIGHT], tail[UPDATES], tail[CLIPPED] = self.weight, 1, int(self.is_clipped)
        tail[NOT_ZERO] = int(self.not_zero)
        if self.loss is not None:
            steps = self._steps("loss", self.loss, MOST_METRIC, self.metric_weight)
            tail[LOSS_WEIGHT], tail[LOSS] = self.metric_weight, steps
        if self.distance is not None:
            weight = self.metric_weight if self.distance_weight is None else self.distance_weight
            steps = self._steps("distance", self.distance, MOST_DISTANCE, weight)
            tail[DISTANCE_WEIGHT], tail[DISTANCE] = weight, steps
        if self.score is not None:
            score = min(max(_finite("score", self.score), 0.0), 1.0)
            tail[SCORED], tail[SCORE] = 1, round(score * SCORE_STEPS)
            tail[HISTOGRAM][min(int(score * BINS), BINS - 1)] = 1
        return tail

    def _steps(self, name: str, metric: float, most: float, weight: int) -> int:
        bounded = min(max(_finite(name, metric), 0.0), most)
        return round(bounded * METRIC_STEPS * weight / self.most_metric_weight)


def _finite(name: str, number: float) -> float:
    if not math.isfinite(number):
        raise NotFinite(tensor=name, count=1)
    return number


@dataclass(frozen=True, slots=True)
class SumTail:
    """The sum of the members' tails, checked: what the coordinator learns about the cohort beside the mean."""

    weight: int
    updates: int
    clipped: int
    loss: float | None  # weighted means over the members that report one; None if none does
    distance: float | None
    scored: int
    score: float | None  # mean
    histogram: tuple[int, ...]  # of scores; BINS numbers
    not_zero: int = 0  # terms of a sum that are not all zeros

    @classmethod
    def of(cls, words: Sequence[int], updates: int, ring: Ring, most_metric_weight: int) -> "SumTail":
        """Reads the tail of an unmasked sum. updates: number of updates in the sum. Shape: words (64,).

        Raises SumImplausible if honest updates cannot have this tail. A sum with a wrong mask has such a tail, but for one in
        2^600 cases.
        """
        if words[UPDATES] != updates:
            raise SumImplausible(problem=f"its check word is {words[UPDATES]}, must be {updates}")
        if any(word for place in ZEROS for word in words[place]):
            raise SumImplausible(problem="it has numbers where all updates have 0")
        histogram = tuple(words[HISTOGRAM])
        losses, distances = (round(most * METRIC_STEPS) * updates for most in (MOST_METRIC, MOST_DISTANCE))
        bounds = (
            ("weights", words[WEIGHT], updates * ring.least_weight, updates * ring.most_weight),
            ("clipped updates", words[CLIPPED], 0, 0 if ring.adds_terms else updates),
            ("terms that are not 0", words[NOT_ZERO], 0, updates if ring.adds_terms else 0),
            ("weights of losses", words[LOSS_WEIGHT], 0, updates * most_metric_weight),
            ("losses", words[LOSS], 0, losses if words[LOSS_WEIGHT] else 0),
            ("weights of distances", words[DISTANCE_WEIGHT], 0, updates * most_metric_weight),
            ("distances", words[DISTANCE], 0, distances if words[DISTANCE_WEIGHT] else 0),
            ("scored updates", words[SCORED], 0, updates),
            ("scores", words[SCORE], 0, words[SCORED] * SCORE_STEPS),
            ("the histogram", sum(histogram), words[SCORED], words[SCORED]),
        )
        for name, number, least, most in bounds:
            if not least <= number <= most:
                raise SumImplausible(problem=f"the sum of {name} is {number}, must be {least} to {most}")
        return cls.read(words, most_metric_weight)

    @classmethod
    def read(cls, words: Sequence[int], most_metric_weight: int) -> "SumTail":
        """Reads a tail that `of` has checked before. Shape: words (64,)."""
        return cls(
            weight=words[WEIGHT],
            updates=words[UPDATES],
            clipped=words[CLIPPED],
            loss=_mean(words[LOSS] * most_metric_weight / METRIC_STEPS, words[LOSS_WEIGHT]),
            distance=_mean(words[DISTANCE] * most_metric_weight / METRIC_STEPS, words[DISTANCE_WEIGHT]),
            scored=words[SCORED],
            score=_mean(words[SCORE] / SCORE_STEPS, words[SCORED]),
            histogram=tuple(words[HISTOGRAM]),
            not_zero=words[NOT_ZERO],
        )


def _mean(total: float, weight: int) -> float | None:
    return total / weight if weight else None


def check_norm(norm: float, ring: Ring) -> None:
    """Checks the L2 norm of the whole mean. Raises SumImplausible if honest deltas cannot have a mean of this norm."""
    if not norm <= ring.clip_norm * NORM_SLACK:
        problem = f"the norm of the mean is {norm:.4g}, that of every honest update is at most {ring.clip_norm:.4g}"
        raise SumImplausible(problem=problem)
