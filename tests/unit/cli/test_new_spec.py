"""The run spec that `pluralllm spec new` prints."""

import pytest

from pluralllm.cli.new_spec import FEWEST_CLIENTS, least_clients, new_spec
from pluralllm.client.disclosure.policy import Policy
from pluralllm.common.errors.tree import InvalidSpec
from pluralllm.common.words.spec import PRESETS, spec_from_toml


@pytest.mark.parametrize(
    ("clients", "least"), [(1, 3), (3, 3), (4, 3), (5, 4), (8, 5), (10, 7), (16, 10), (32, 20), (64, 39), (100, 61)]
)
def test_a_round_ends_with_more_than_half_of_the_clients_and_never_with_two(clients: int, least: int) -> None:
    assert least_clients(clients) == least


@pytest.mark.parametrize("preset", PRESETS)
def test_a_new_spec_has_the_quorum_that_the_default_policy_asks_for(preset: str) -> None:
    spec = spec_from_toml(new_spec(preset=preset), "new")
    assert spec.round.min_clients == spec.round.target_clients == FEWEST_CLIENTS == Policy().min_cohort
    assert not spec.groups.named
    assert spec.aggregation.max_examples == 1024


def test_a_new_spec_for_five_clients_is_for_any_five() -> None:
    spec = spec_from_toml(new_spec(clients=5), "new")
    assert (spec.round.min_clients, spec.round.target_clients) == (4, 5)
    assert not spec.groups.named


def test_the_groups_that_train_are_counted() -> None:
    text = new_spec(train=("a", 'b "quoted" 質', "c", "d", "e"), held_out=("f", "g"))
    spec = spec_from_toml(text, "new")
    assert spec.groups.train == ("a", 'b "quoted" 質', "c", "d", "e")
    assert spec.groups.held_out == ("f", "g")
    assert (spec.round.min_clients, spec.round.target_clients) == (4, 5)


def test_a_new_spec_demands_noise_only_if_it_is_asked_to() -> None:
    assert spec_from_toml(new_spec(), "new").privacy is None
    demand = spec_from_toml(new_spec(respondents_epsilon=2.5), "new").privacy
    assert demand is not None
    assert (demand.respondents_epsilon, demand.delta, demand.unit) == (2.5, 1e-6, "respondent")


def test_two_groups_that_train_are_too_few_and_the_spec_says_so() -> None:
    with pytest.raises(InvalidSpec, match=r"target_clients 3 is above the 2 groups\.train"):
        spec_from_toml(new_spec(train=("a", "b")), "new")
