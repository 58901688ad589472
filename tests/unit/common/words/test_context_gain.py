"""The context gain near its limit, and its mean over the groups that report it."""

import pytest

from pluralllm.common.words.context_gain import LEAST_CONTEXT_GAIN, gain_text, ignores_context, mean_gain


def test_a_gain_below_the_limit_shows_that_predictions_ignore_the_group_and_an_unknown_one_shows_nothing() -> None:
    gains = [LEAST_CONTEXT_GAIN - 1e-9, LEAST_CONTEXT_GAIN, -1.0, None]
    assert [ignores_context(gain) for gain in gains] == [True, False, True, False]


def test_the_mean_is_over_the_gains_that_are_known() -> None:
    assert mean_gain([0.02, None, 0.04]) == pytest.approx(0.03)
    assert mean_gain([None]) is mean_gain([]) is None
    assert [gain_text(gain) for gain in (0.02, -0.001, None)] == ["+0.0200", "-0.0010", "-"]
