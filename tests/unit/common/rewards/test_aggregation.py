"""The rewards of many groups are aggregated into one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pluralllm.common.rewards.aggregation import aggregate
from pluralllm.common.words.reward_weights import RewardAggregation

REWARDS = {"a": [0.2, 0.8, None], "b": [0.6, 0.4, None], "c": [None, 0.0, None]}
groups_of_rewards = st.dictionaries(
    st.sampled_from("abcdef"), st.lists(st.none() | st.floats(0, 1), min_size=3, max_size=3), min_size=1
)


def rule(name: str, **numbers: float) -> RewardAggregation:
    return RewardAggregation.model_validate({"rule": name, **numbers})


def test_what_a_group_could_not_score_is_the_others_alone() -> None:
    *scored, nobodys = aggregate(rule("mean"), REWARDS).rewards
    assert scored == pytest.approx([0.4, 0.4])
    assert nobodys is None
    assert aggregate(rule("min"), REWARDS).rewards == (0.2, 0.0, None)
    assert aggregate(rule("max"), REWARDS).rewards == (0.6, 0.8, None)


def test_a_fixed_alpha_goes_from_min_over_mean_to_max() -> None:
    for alpha, name in ((-1000.0, "min"), (0.0, "mean"), (1000.0, "max")):
        found = aggregate(rule("alpha", alpha=alpha), REWARDS).rewards
        wanted = aggregate(rule(name), REWARDS).rewards
        assert found[:2] == pytest.approx(wanted[:2], abs=2e-3)
    middle = [aggregate(rule("alpha", alpha=alpha), REWARDS).rewards[0] for alpha in (-20.0, -5.0, 0.0, 5.0, 20.0)]
    assert middle == sorted(middle, key=lambda value: -1.0 if value is None else value)


def test_the_adaptive_rule_begins_with_the_badly_served_and_decays() -> None:
    settings = rule("adaptive", decay=0.5, temperature=0.1)
    first = aggregate(settings, {"well": [0.8], "badly": [0.2]})
    assert dict(first.history) == {"well": 0.8, "badly": 0.2}
    assert first.weights["badly"] == pytest.approx(np.exp(6) / (1 + np.exp(6)))
    assert first.rewards[0] == pytest.approx(0.2 * first.weights["badly"] + 0.8 * first.weights["well"])
    second = aggregate(settings, {"well": [0.8], "badly": [1.0]}, first.history)
    assert dict(second.history) == {"well": pytest.approx(0.8), "badly": pytest.approx(0.6)}
    assert second.weights["badly"] < first.weights["badly"]


def test_groups_that_are_served_alike_weigh_alike_once_that_is_asked_for() -> None:
    nearly = {"a": [0.50], "b": [0.52]}
    assert aggregate(rule("adaptive", fair_from=0.9), nearly).weights == {"a": 0.5, "b": 0.5}
    assert aggregate(rule("adaptive"), nearly).weights["a"] > 0.5


def test_a_group_that_is_away_keeps_its_history_and_has_no_weight() -> None:
    settings = rule("adaptive")
    first = aggregate(settings, {"a": [0.2], "b": [0.6]})
    second = aggregate(settings, {"b": [0.6]}, first.history)
    assert second.weights == {"b": 1.0}
    assert dict(second.history)["a"] == 0.2


@given(groups_of_rewards, st.sampled_from(["mean", "min", "max", "alpha", "adaptive"]))
def test_an_aggregate_is_between_the_lowest_and_the_highest(rewards: dict[str, list[float | None]], name: str) -> None:
    aggregated = aggregate(rule(name), rewards)
    assert sum(aggregated.weights.values()) == pytest.approx(1)
    for number, value in enumerate(aggregated.rewards):
        group_rewards = [values[number] for values in rewards.values() if values[number] is not None]
        assert (value is None) == (not group_rewards)
        if value is not None:
            low, high = min(x for x in group_rewards if x is not None), max(x for x in group_rewards if x is not None)
            assert low - 1e-9 <= value <= high + 1e-9


def test_lists_of_unlike_length_and_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="as many of each"):
        aggregate(rule("mean"), {"a": [0.1], "b": [0.1, 0.2]})
    with pytest.raises(ValueError, match="at least one group"):
        aggregate(rule("mean"), {})
    with pytest.raises(ValidationError, match="temperature"):
        rule("adaptive", temperature=0.0)
