"""The axes of the page's charts."""

import pytest

from pluralllm.server.observe.page_scales import scale_of


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.591, 0.907], [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        ([0.9922, 1.0], [0.98, 0.985, 0.99, 0.995, 1.0]),
        ([1.0], [0.98, 0.985, 0.99, 0.995, 1.0]),
        ([0.5, None], [0.49, 0.495, 0.5, 0.505, 0.51]),
        ([-0.003, 0.03], [-0.01, 0.0, 0.01, 0.02, 0.03]),
    ],
)
def test_an_axis_of_scores_has_round_ticks_around_all_values_and_none_above_1(
    values: list[float | None], ticks: list[float]
) -> None:
    scale = scale_of(values, most=1.0)
    assert scale is not None
    assert (scale["ticks"], scale["low"], scale["high"]) == (ticks, ticks[0], ticks[-1])
    assert all(f"{tick:.{scale['digits']}f}" == f"{tick:.10f}"[: len(f"{tick:.{scale['digits']}f}")] for tick in ticks)


@pytest.mark.parametrize(
    ("values", "ticks", "high"),
    [([0], [0], 1), ([7, 8], [7, 8], 8), (range(31), [0, 10, 20, 30], 30), ([3, 1003], [3, 500, 1003], 1003)],
)
def test_an_axis_of_rounds_has_whole_ticks_from_its_first_to_its_last_value(
    values: list[int], ticks: list[int], high: int
) -> None:
    assert scale_of(values, whole=True) == {"low": ticks[0], "high": high, "ticks": ticks, "digits": 0}


def test_without_a_value_there_is_no_axis() -> None:
    assert scale_of([None], most=1.0) is None
