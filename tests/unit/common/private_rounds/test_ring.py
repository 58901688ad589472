"""Numbers modulo 2^32: no overflow with everybody at the clip, unbiased rounding, and a tail that only honest sums have."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pluralllm.common.errors.private_rounds import SumImplausible, TermTooLong
from pluralllm.common.errors.tree import NotFinite
from pluralllm.common.private_rounds import ring as r
from pluralllm.common.private_rounds.ring import Clipping, MemberTail, Ring, SumTail
from pluralllm.common.words.private_rounds import MAX_LENGTH_OF_TERMS

RING = Ring(members=8, clip_norm=4.0, most_weight=1024)
OF_TERMS = Ring(members=128, clip_norm=864.0, most_weight=1024, adds_terms=True)
UNCLIPPED = Clipping(1.0, is_clipped=False)


@pytest.mark.parametrize(
    ("members", "clip_norm", "exponent"), [(8, 4.0, 25), (128, 4.0, 21), (3, 4.0, 27), (8, 8.0, 24), (5, 10.5, 25)]
)
def test_the_scale_is_the_greatest_power_of_two_that_cannot_overflow(
    members: int, clip_norm: float, exponent: int
) -> None:
    assert Ring(members, clip_norm, 1).scale == 2.0**exponent


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 128), st.floats(1e-6, 1e6))
def test_no_clip_norm_and_number_of_members_overflows(members: int, clip_norm: float) -> None:
    ring = Ring(members, clip_norm, 1)
    assert members * ring.limit <= members * clip_norm * ring.scale <= r.HALF < 2 * members * clip_norm * ring.scale


@pytest.mark.parametrize("sign", [1, -1])
def test_a_hundred_and_twenty_eight_terms_at_the_bound_do_not_overflow_and_a_longer_one_is_refused(sign: int) -> None:
    rng, terms = np.random.default_rng(2), np.zeros((128, 5), np.float32)
    terms[:, 3] = sign * 864.0
    assert r.decoded_sum(sum_of_terms(terms, OF_TERMS, rng), OF_TERMS)[3] == sign * 864.0 * 128
    over = np.nextafter(np.float32(864), np.float32(1e9)) * np.eye(5, dtype=np.float32)[3]
    with pytest.raises(
        TermTooLong, match=r"the L2 norm 864, the run allows 864; a shortened term would belong"
    ) as refusal:
        r.clipping_of(over, OF_TERMS)
    assert refusal.value.norm > refusal.value.limit == 864


def sum_of_terms(
    terms: NDArray[np.float32], ring: Ring, rng: np.random.Generator, weight: int = 1
) -> NDArray[np.uint32]:
    """Returns the sum of terms as numbers modulo 2^32. Shape: terms (members, n), result (n,)."""
    total = np.zeros(terms.shape[1], np.uint32)
    for term in terms:
        total += r.quantised(term, r.clipping_of(term, ring), weight, ring, rng)
    return total


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 128), st.floats(1e-3, MAX_LENGTH_OF_TERMS / 128), st.integers(1, 1024), st.integers(0, 2**32))
def test_a_sum_of_terms_is_the_plain_sum_but_for_a_step_of_each_member_whatever_the_weights_are(
    members: int, bound: float, weight: int, seed: int
) -> None:
    ring, rng = Ring(max(3, members), bound, 1024, adds_terms=True), np.random.default_rng(seed)
    terms = rng.normal(size=(members, 7)).astype(np.float32)
    terms *= np.float32(0.9999 * bound) * rng.random((members, 1), np.float32) / np.linalg.norm(terms, axis=1)[:, None]
    total = r.decoded_sum(sum_of_terms(terms, ring, rng, weight), ring)
    assert ring.scale >= 512
    assert np.abs(total - terms.astype(np.float64).sum(0)).max() <= members / ring.scale
    r.check_norm(float(np.linalg.norm(total)) / members, ring)


@pytest.mark.parametrize("sign", [1, -1])
def test_all_members_at_the_clip_in_one_value_do_not_overflow(sign: int) -> None:
    rng = np.random.default_rng(1)
    for ring in (Ring(128, 4.0, 16_384), Ring(128, 3.999999, 7), Ring(128, 1e5, 1)):
        delta = np.zeros(3, np.float32)
        delta[1] = sign * 1e30
        clipping = r.clipping_of(delta, ring)
        assert clipping.is_clipped
        total = np.zeros(3, np.uint32)
        for _ in range(128):
            total += r.quantised(delta, clipping, ring.most_weight, ring, rng)
        assert abs(int(total.view(np.int32)[1])) <= r.HALF
        mean = r.decoded_mean(total, ring, 128 * ring.most_weight)
        assert mean[1] == pytest.approx(sign * ring.clip_norm, rel=2e-5)
        r.check_norm(float(np.linalg.norm(mean)), ring)


def test_a_number_above_the_clip_is_limited_whatever_the_caller_says() -> None:
    for number in (1e9, -1e9):
        steps = r.quantised(np.array([number], np.float32), UNCLIPPED, 1024, RING, np.random.default_rng(1))
        assert abs(int(steps.view(np.int32)[0])) == RING.limit


def test_rounding_is_unbiased_and_by_less_than_one_step() -> None:
    value = 3.3 / RING.scale
    values = np.tile(np.array([value, -value], np.float32), 20_000)
    steps = r.quantised(values, UNCLIPPED, 1024, RING, np.random.default_rng(7)).view(np.int32)
    assert set(steps[::2].tolist()) == {3, 4}
    assert set(steps[1::2].tolist()) == {-3, -4}
    assert steps[::2].mean() == pytest.approx(3.3, abs=0.015)  # standard deviation 0.0032
    assert steps[1::2].mean() == pytest.approx(-3.3, abs=0.015)


def test_a_delta_is_scaled_to_the_largest_norm_and_a_short_one_is_kept() -> None:
    long = np.array([30.0, -40.0], np.float32)
    assert r.clipping_of(long, RING) == Clipping(4 / 50, is_clipped=True)
    assert r.clipping_of(long / np.float32(12.6), RING) == UNCLIPPED
    assert r.clipping_of(np.zeros(0, np.float32), RING) == UNCLIPPED
    many = np.full(r.SLICE + 5, 1.0, np.float32)
    assert r.clipping_of(many, RING).factor == pytest.approx(4 / math.sqrt(many.size))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_delta_that_is_not_finite_is_refused_before_anything_is_quantised(value: float) -> None:
    delta = np.zeros(r.SLICE + 3, np.float32)
    delta[-1] = value
    with pytest.raises(NotFinite):
        r.clipping_of(delta, RING)
    tail = MemberTail(1, False, 1, 1)
    for wrong in (replace(tail, loss=value), replace(tail, distance=value), replace(tail, score=value)):
        with pytest.raises(NotFinite):
            wrong.words()


@pytest.mark.parametrize("weight", [0, 1025, 2**31])
def test_a_weight_above_the_largest_is_refused(weight: int) -> None:
    with pytest.raises(ValueError, match="the weight"):
        r.quantised(np.zeros(1, np.float32), UNCLIPPED, weight, RING, np.random.default_rng(1))


def test_the_mean_is_weighted_and_exact_but_for_one_division() -> None:
    total = np.array([3 * 1024 * 7, 2**32 - 5], np.uint32)
    mean = r.decoded_mean(total, RING, 777)
    assert mean.tolist() == [3 * 1024 * 7 * 1024 / 2**25 / 777, -5 * 1024 / 2**25 / 777]


def test_a_weight_scales_what_a_member_adds() -> None:
    half = r.quantised(np.array([1.0], np.float32), UNCLIPPED, 512, RING, np.random.default_rng(1))
    assert half.tolist() == [2**24]
    assert RING.step_share(512, 16) == 4 * 2**25 / 2 / 4


TAILS = [
    MemberTail(100, True, 100, 1024, loss=0.5, distance=0.2, score=0.71),
    MemberTail(300, False, 300, 1024, loss=20.0, score=1.0),
    MemberTail(1024, False, 1024, 1024, distance=-1.0),
    MemberTail(7, False, 7, 1024),
]


def summed(tails: list[MemberTail]) -> list[int]:
    total = np.zeros(64, np.uint32)
    for tail in tails:
        total += tail.words()
    return total.tolist()


def test_the_tail_of_a_sum_holds_weighted_means_of_what_members_report() -> None:
    tail = SumTail.of(summed(TAILS), 4, RING, 1024)
    assert (tail.weight, tail.updates, tail.clipped, tail.scored) == (1431, 4, 1, 2)
    assert tail.loss == pytest.approx((100 * 0.5 + 300 * 16) / 400, abs=2e-3)
    assert tail.distance == pytest.approx(100 * 0.2 / 1124, abs=2e-3)
    assert tail.score == pytest.approx((0.71 + 1) / 2, abs=1e-6)
    assert [place for place, count in enumerate(tail.histogram) if count] == [22, 31]
    nothing = SumTail.of(summed([TAILS[3]] * 3), 3, RING, 1024)
    assert (nothing.loss, nothing.distance, nothing.score) == (None, None, None)


def test_every_place_of_the_tail_is_the_one_that_was_agreed() -> None:
    words = TAILS[0].words().tolist()
    assert words[:9] == [100, 1, 1, 100, round(0.5 * 4096 * 100 / 1024), 100, 80, 1, round(0.71 * 2**20)]
    assert [place for place, word in enumerate(words) if word] == [*range(9), 16 + 22]


@pytest.mark.parametrize(
    ("place", "change"),
    [
        *((0, 2**31), (0, -1500), (1, 1), (1, -1), (2, 4), (3, 5000), (4, 2**20), (5, 5000), (6, 2**20)),
        *((7, 1), (7, 5), (8, 2**22), (9, 1), (15, 2**31), (16, 1), (48, 1), (63, 2**32 - 1)),
    ],
)
def test_a_tail_that_honest_updates_cannot_have_is_refused(place: int, change: int) -> None:
    words = summed(TAILS)
    words[place] = (words[place] + change) % 2**32
    with pytest.raises(SumImplausible):
        SumTail.of(words, 4, RING, 1024)


def test_the_tail_of_terms_counts_those_that_are_not_zero_and_none_that_is_clipped() -> None:
    tails = [MemberTail(100, False, 100, 1024, not_zero=True), MemberTail(300, False, 300, 1024)]
    words = summed(tails)
    assert [place for place, word in enumerate(tails[0].words()) if word] == [0, 1, 9]
    tail = SumTail.of(words, 2, OF_TERMS, 1024)
    assert (tail.weight, tail.not_zero, tail.clipped) == (400, 1, 0)
    with pytest.raises(SumImplausible, match="the sum of terms that are not 0 is 1, must be 0 to 0"):
        SumTail.of(words, 2, RING, 1024)
    for place, value, name in ((2, 1, "clipped updates"), (9, 3, "terms that are not 0"), (10, 1, "numbers where all")):
        with pytest.raises(SumImplausible, match=name):
            SumTail.of([*words[:place], value, *words[place + 1 :]], 2, OF_TERMS, 1024)


def test_a_metric_without_weight_and_another_number_of_updates_are_refused() -> None:
    words = summed([TAILS[3]] * 3)
    words[4] = 1
    with pytest.raises(SumImplausible, match="losses is 1, must be 0 to 0"):
        SumTail.of(words, 3, RING, 1024)
    words[4], words[6] = 0, 1
    with pytest.raises(SumImplausible, match="distances"):
        SumTail.of(words, 3, RING, 1024)
    with pytest.raises(SumImplausible, match="check word is 4, must be 3"):
        SumTail.of(summed(TAILS), 3, RING, 1024)


def test_a_mean_longer_than_any_honest_delta_is_refused() -> None:
    r.check_norm(4.0 * (1 + 2**-10), RING)
    for norm in (4.01, math.inf, math.nan):
        with pytest.raises(SumImplausible, match="norm of the mean"):
            r.check_norm(norm, RING)


def test_a_long_delta_is_measured_and_rounded_like_a_short_one() -> None:
    delta = np.random.default_rng(3).normal(0, 0.05, 2 * r.PIECE + 5).astype(np.float32)
    clipping = r.clipping_of(delta, RING)
    assert clipping.factor == pytest.approx(RING.clip_norm / np.linalg.norm(delta.astype(np.float64)), rel=1e-12)
    factor = clipping.factor * (100 / RING.most_weight) * RING.scale
    exact = delta.astype(np.float64) * factor + np.random.default_rng(5).random(delta.size)
    made = r.quantised(delta, clipping, 100, RING, np.random.default_rng(5)).view(np.int32)
    assert np.array_equal(made, np.floor(exact))
    delta[[1, -1]] = np.nan
    with pytest.raises(NotFinite) as refused:
        r.clipping_of(delta, RING)
    assert refused.value.count == 2
