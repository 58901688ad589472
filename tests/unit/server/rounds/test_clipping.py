"""Factors that shorten updates: which updates they shorten, by how much, and whom they leave alone."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluralllm.common.words.ids import ClientId, Digest
from pluralllm.server.rounds.clipping import MAX_LENGTH, clip_scales
from pluralllm.server.rounds.events import Receipt


def receipts_of(*norms: float | None) -> list[Receipt]:
    return [Receipt(ClientId(f"c{number}"), Digest("x"), 10, norm=norm) for number, norm in enumerate(norms)]


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
    assert clip_scales(receipts_of(*norms)) == pytest.approx(scales)


def test_an_unknown_norm_leaves_every_update_as_it_is() -> None:
    assert clip_scales(receipts_of(1.0, 1.0, 1000.0, None)) == ()


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=9), st.integers(0, 4), st.floats(1, 1e30))
def test_no_more_than_half_of_the_members_can_lift_the_limit_above_the_longest_honest_update(
    honest: list[float], liars: int, long: float
) -> None:
    liars = min(liars, len([norm for norm in honest if norm > 0]))
    norms = [*honest, *[1e6 * long] * liars]
    scales = clip_scales(receipts_of(*norms)) or (1.0,) * len(norms)
    assert all(0 <= scale <= 1 for scale in scales)
    assert all(norm * scale <= MAX_LENGTH * max(honest) * (1 + 1e-9) for norm, scale in zip(norms, scales, strict=True))


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12))
def test_lengths_after_the_factors_stay_within_three_medians(norms: list[float]) -> None:
    scales = clip_scales(receipts_of(*norms)) or (1.0,) * len(norms)
    limit = MAX_LENGTH * statistics.median_low(norms)
    for norm, scale in zip(norms, scales, strict=True):
        assert norm * scale <= limit * (1 + 1e-9)
        assert scale == 1 or norm > limit
