"""Factors that shorten updates: which updates they shorten, by how much, and whom they leave alone."""

import statistics
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pluralllm.common.words.aggregation import Aggregation
from pluralllm.common.words.ids import ClientId, Digest
from pluralllm.server.rounds.clipping import MAX_LENGTH, clip_scales
from pluralllm.server.rounds.events import Receipt
from pluralllm.server.rounds.weighting import shares_of, weigh

# Norms of updates: 0, or far enough from the least float that a scale of it is exact.
NORMS = st.floats(0, 1e6).map(lambda norm: norm if norm > 1e-200 else 0.0)


def receipts_of(*norms: float | None) -> list[Receipt]:
    return [Receipt(ClientId(f"c{number}"), Digest("x"), 10, norm=norm) for number, norm in enumerate(norms)]


def even(norms: Sequence[float]) -> list[float]:
    """Returns an even share for each update."""
    return [1 / max(1, len(norms))] * len(norms)


@pytest.mark.parametrize(
    ("norms", "scales"),
    [
        ((2.0, 2.0, 2.0, 6.0), ()),  # exactly at the limit
        ((2.0, 2.0, 2.0, 6.1), (1, 1, 1, 6 / 6.1)),
        ((2.0, 2.0, 2.0, 2000.0), (1, 1, 1, 0.003)),
        ((1.0, 2.0, 100.0), (1, 1, 0.06)),
        ((5.0,), ()),
        ((1.0, 3.0), ()),  # of two, the shorter one sets the limit
        ((1.0, 4.0), (1, 0.75)),
        ((100.0, 1.0, 100.0, 1.0), (0.03, 1, 0.03, 1)),  # half of the members send long updates
        ((0.0, 0.0, 2.0), ()),  # zeros do not count in the median
        ((0.0, 0.0, 2.0, 8.0), (1, 1, 1, 0.75)),
        ((0.0, 0.0), ()),
        ((), ()),
    ],
)
def test_updates_beyond_three_times_the_lower_median_are_shortened_to_it(
    norms: tuple[float, ...], scales: tuple[float, ...]
) -> None:
    assert clip_scales(receipts_of(*norms), even(norms)) == pytest.approx(scales)


def test_factors_have_twelve_significant_digits_and_shares_nine_decimals() -> None:
    assert clip_scales(receipts_of(1.0, 1.0, 7.0), even((1.0,) * 3)) == (1.0, 1.0, 0.428571428571)
    assert clip_scales(receipts_of(0.1, 0.1, 70.0), even((1.0,) * 3)) == (1.0, 1.0, 0.00428571428571)
    over = 1 / 3 + 1e-9  # three shares of it are 1.000000003
    assert clip_scales(receipts_of(1.0, 1.0, 3.0), (1 / 3, 1 / 3, over)) == (1.0, 1.0, 0.999999997)
    within = 1 / 3 + 1e-10  # three shares of it round to 1
    assert clip_scales(receipts_of(1.0, 1.0, 3.0), (1 / 3, 1 / 3, within)) == ()


@pytest.mark.parametrize(
    ("norms", "shares", "scales"),
    [
        ((1.0, 2.0, 4.0), (1 / 3,) * 3, (1, 1, 0.5)),
        ((1.0, 2.0, 4.0, 5.0), (1 / 4,) * 4, (1, 1, 0.5, 0.4)),  # the lower one of two in the middle
        (
            (2.0, 2.0, 2.0),
            (1 / 9, 1 / 9, 7 / 9),
            (),
        ),  # the limit of the share is not below the median up to three even shares
        ((2.0, 2.0, 2.0, 4.0), (1 / 12, 1 / 12, 1 / 12, 0.75), (1, 1, 1, 0.5)),
        ((2.0, 2.0, 1.0), (1 / 3,) * 3, ()),
        ((0.0, 0.0, 3.0), (1 / 3,) * 3, ()),
    ],
)
def test_a_run_may_shorten_every_update_to_the_median_itself(
    norms: tuple[float, ...], shares: tuple[float, ...], scales: tuple[float, ...]
) -> None:
    assert clip_scales(receipts_of(*norms), shares, at_median=True) == pytest.approx(scales)


@pytest.mark.parametrize(
    ("norms", "shares", "scales"),
    [
        ((1.0, 1.0, 1.0, 1.0), (1 / 12, 1 / 12, 1 / 12, 0.75), ()),  # three even shares: as long as the median
        ((1.0, 1.0, 1.0, 1.01), (1 / 12, 1 / 12, 1 / 12, 0.75), (1, 1, 1, 1 / 1.01)),
        ((1.0, 1.0, 1.0, 3.0), (1 / 12, 1 / 12, 1 / 12, 0.75), (1, 1, 1, 1 / 3)),
        ((1.0, 1.0, 1.0, 2.0), (1 / 6, 1 / 6, 1 / 6, 0.375), ()),  # one and a half: two medians
        ((1.0, 1.0, 1.0, 2.1), (1 / 6, 1 / 6, 1 / 6, 0.375), (1, 1, 1, 2 / 2.1)),
        ((3.0, 1.0, 1.0, 1.0), (1 / 12, 1 / 4, 1 / 3, 1 / 3), ()),  # a small share lifts no limit, and lowers none
        ((3.1, 1.0, 1.0, 1.0), (1 / 12, 1 / 4, 1 / 3, 1 / 3), (3 / 3.1, 1, 1, 1)),
    ],
)
def test_the_limit_falls_as_the_share_rises_above_an_even_one(
    norms: tuple[float, ...], shares: tuple[float, ...], scales: tuple[float, ...]
) -> None:
    assert clip_scales(receipts_of(*norms), shares) == pytest.approx(scales)


@example(
    [(1.0, 1), (1.0, 1), (1.0, 1), (1.0, 10)]
)  # the rounded weights make the last share a little more than three even ones
@given(st.lists(st.tuples(st.floats(1e-3, 1e3), st.integers(1, 10_000)), min_size=1, max_size=12))
def test_no_member_moves_the_model_further_than_three_even_members_with_the_median_update(
    members: list[tuple[float, int]],
) -> None:
    receipts = [
        Receipt(ClientId(f"c{number}"), Digest("x"), examples, norm=norm)
        for number, (norm, examples) in enumerate(members)
    ]
    weights, _ = weigh(receipts, Aggregation(max_examples=10_000), (), limits_members=True)
    shares = shares_of(receipts, Aggregation(max_examples=10_000), weights)
    scales = clip_scales(receipts, shares) or (1.0,) * len(members)
    median = statistics.median_low([norm for norm, _ in members])
    for (norm, _), share, scale in zip(members, shares, scales, strict=True):
        assert share * norm * scale <= MAX_LENGTH * median / len(members) * (1 + 1e-8)
        assert scale == 1 or norm > median  # nobody is shortened below the median


def test_an_unknown_norm_leaves_every_update_as_it_is() -> None:
    assert clip_scales(receipts_of(1.0, 1.0, 1000.0, None), (0.25,) * 4) == ()


@given(st.lists(NORMS, min_size=1, max_size=9), st.integers(0, 4), st.floats(1, 1e30))
def test_no_more_than_half_of_the_members_can_lift_the_limit_above_the_longest_honest_update(
    honest: list[float], liars: int, long: float
) -> None:
    liars = min(liars, len([norm for norm in honest if norm > 0]))
    norms = [*honest, *[1e6 * long] * liars]
    scales = clip_scales(receipts_of(*norms), even(norms)) or (1.0,) * len(norms)
    assert all(0 <= scale <= 1 for scale in scales)
    assert all(norm * scale <= MAX_LENGTH * max(honest) * (1 + 1e-9) for norm, scale in zip(norms, scales, strict=True))


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12))
def test_lengths_after_the_factors_stay_within_three_medians(norms: list[float]) -> None:
    scales = clip_scales(receipts_of(*norms), even(norms)) or (1.0,) * len(norms)
    limit = MAX_LENGTH * statistics.median_low(norms)
    for norm, scale in zip(norms, scales, strict=True):
        assert norm * scale <= limit * (1 + 1e-9)
        assert scale == 1 or norm > limit
