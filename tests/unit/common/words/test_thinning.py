"""The points of a curve that are shown."""

from pluralllm.common.words.thinning import thinned


def test_thinned_values_keep_the_first_and_the_last_and_are_evenly_spaced() -> None:
    assert thinned(range(101), 5) == [0, 25, 50, 75, 100]
    assert thinned("abc", 3) == ["a", "b", "c"]


def test_values_that_are_few_are_all_kept() -> None:
    assert thinned([2.0, 1.0, 2.0], 5) == [2.0, 1.0, 2.0]
    assert thinned([], 2) == []
