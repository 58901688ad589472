"""The run spec that `pluralllm spec new` prints."""

from pathlib import Path
from typing import Any

import pytest
from support.installed_package import METHODS, RULE, VECTORS, Site
from typer.testing import CliRunner

from pluralllm.cli.__main__ import app
from pluralllm.cli.new_spec import new_spec
from pluralllm.client.disclosure.limits import check_private_rounds
from pluralllm.client.disclosure.policy import Policy, RoundPrivacy, load_policy
from pluralllm.common.errors.tree import InvalidArgument, InvalidSpec, PolicyForbids
from pluralllm.common.words.private_rounds import threshold
from pluralllm.common.words.run_state import READS_SINGLE, READS_SUMS
from pluralllm.common.words.spec import PRESETS, load_spec_values, spec_from_toml
from pluralllm.operator.default_rounds import colluders_among, least_clients

EXAMPLES = Path(__file__).parents[3] / "deploy" / "examples"


@pytest.mark.parametrize(
    ("clients", "least"), [(1, 3), (3, 3), (4, 3), (5, 4), (8, 5), (10, 7), (16, 10), (32, 20), (64, 39), (100, 61)]
)
def test_a_round_ends_with_more_than_half_of_the_clients_and_never_with_two(clients: int, least: int) -> None:
    assert least_clients(clients) == least


@pytest.mark.parametrize("preset", PRESETS)
def test_a_new_spec_is_for_any_five_clients_and_their_rounds_are_private(preset: str) -> None:
    text = new_spec(preset=preset)
    spec = spec_from_toml(text, "new")
    assert (spec.round.min_clients, spec.round.target_clients) == (4, 5)
    assert not spec.groups.named
    assert spec.aggregation.max_examples == 1024
    assert spec.private_rounds is not None
    assert spec.private_rounds.colluders == 1
    assert (READS_SUMS in text, READS_SINGLE in text) == (True, False)
    check_private_rounds(load_policy(EXAMPLES / "policy.toml"), spec)


def test_a_preset_has_the_clip_norm_of_its_own_updates_and_plain_runs_have_none() -> None:
    clips = {}
    for preset in PRESETS:
        spec = spec_from_toml(new_spec(preset=preset), "new")
        assert spec.private_rounds is not None
        clips[preset] = spec.private_rounds.clip_norm
        assert spec_from_toml(new_spec(preset=preset, plain_rounds=True), "new").private_rounds is None
    assert clips.pop("sums") == 4.0, "without effect: terms of sums are not clipped"
    assert clips == {"default": 16.0, "fourier": 11.5, "attention": 3.8, "paper": 1.4}


def test_a_new_spec_for_three_clients_is_plain_and_says_what_follows() -> None:
    text = new_spec(clients=3)
    spec = spec_from_toml(text, "new")
    assert (spec.round.min_clients, spec.round.target_clients, spec.private_rounds) == (3, 3, None)
    assert spec.round.min_clients == Policy().min_cohort
    assert f"# Plain rounds: {READS_SINGLE} (3 clients train in a round)." in text
    assert "consents first: pluralllm-client consent RUN" in text
    assert "hidden_among = 2" in text


def test_three_clients_that_agree_can_have_private_rounds() -> None:
    text = new_spec(clients=3).replace("[embedding]", "[private_rounds]\ncolluders = 1\n\n[embedding]")
    spec = spec_from_toml(text, "new")
    check_private_rounds(Policy(private_rounds=RoundPrivacy(rounds="required", hidden_among=2)), spec)
    with pytest.raises(PolicyForbids, match="hidden_among"):
        check_private_rounds(load_policy(EXAMPLES / "policy.toml"), spec)


def test_plain_rounds_of_a_new_spec_are_asked_for_and_say_what_the_coordinator_reads() -> None:
    text = new_spec(clients=8, plain_rounds=True)
    assert spec_from_toml(text, "new").private_rounds is None
    assert f"# Plain rounds: {READS_SINGLE} (--plain-rounds). Only partners whose policy.toml says rounds = " in text
    assert "Three clients" not in text


@pytest.mark.parametrize("clients", [4, 5, 7, 8, 16, 32, 64, 100, 128])
def test_a_new_spec_lets_one_client_in_five_collude_and_its_quorum_is_enough_for_that(clients: int) -> None:
    spec = spec_from_toml(new_spec(clients=clients), "new")
    assert spec.private_rounds is not None
    assert spec.private_rounds.colluders == colluders_among(clients) == max(1, clients // 5)
    assert spec.round.min_clients == threshold(clients, max(1, clients // 5))


def test_more_clients_than_a_private_round_takes_have_plain_ones_with_the_reason() -> None:
    text = new_spec(clients=129)
    assert spec_from_toml(text, "new").private_rounds is None
    assert "round.target_clients to at most 128" in text


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


def test_the_command_writes_as_many_rounds_as_are_asked_for() -> None:
    done = CliRunner().invoke(app, ["spec", "new", "--rounds", "7"], catch_exceptions=False)
    assert spec_from_toml(done.stdout, "run.toml").rounds == 7


def test_the_command_writes_a_closing_round_if_it_is_asked_to() -> None:
    for words, closes in ((), False), (("--closing-round",), True):
        done = CliRunner().invoke(app, ["spec", "new", *words], catch_exceptions=False)
        assert spec_from_toml(done.stdout, "run.toml").closes == closes


@pytest.mark.parametrize("changes", [{"clients": 3}, {"plain_rounds": True}, {"preset": "sums"}], ids=str)
def test_a_run_that_can_have_no_closing_round_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="--closing-round"):
        new_spec(closing_round=True, **changes)


def test_an_empty_file_which_a_failed_command_leaves_is_no_spec(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("\n")
    with pytest.raises(InvalidSpec, match="it is empty; `pluralllm spec new` prints a spec"):
        load_spec_values(tmp_path / "run.toml")


def test_parts_of_installed_packages_are_named_with_their_versions_and_an_aggregator_has_plain_rounds(
    site: Site, tmp_path: Path
) -> None:
    site.install("town_hall_methods", version="1.2")
    words = ["spec", "new", "--aggregator", RULE, "--embedder", VECTORS, "--width", "32"]
    text = CliRunner().invoke(app, words, catch_exceptions=False).stdout
    spec = spec_from_toml(text, "new")
    assert spec.aggregation.rule == "plugin"
    for plugin, name in ((spec.aggregation.plugin, RULE), (spec.embedding.plugin, VECTORS)):
        assert plugin is not None
        assert (plugin.name, plugin.distribution, plugin.version) == (name, METHODS, "1.2")
    assert (spec.embedding.model, spec.embedding.dimension, spec.aggregation.max_examples) == (VECTORS, 64, 1024)
    assert spec.private_rounds is None
    assert f"# Plain rounds: {READS_SINGLE} (aggregation.rule plugin looks at single updates" in text
    with pytest.raises(InvalidArgument, match="no installed package has it; there are: clamped-mean"):
        CliRunner().invoke(app, ["spec", "new", "--aggregator", "clamped"], catch_exceptions=False)


def test_an_embedder_alone_leaves_the_rounds_private(site: Site) -> None:
    site.install("town_hall_methods")
    text = CliRunner().invoke(app, ["spec", "new", "--embedder", VECTORS, "--width", "32"]).stdout
    assert spec_from_toml(text, "new").private_rounds is not None
    with pytest.raises(InvalidArgument, match="--model: has no use beside --embedder"):
        CliRunner().invoke(app, ["spec", "new", "--embedder", VECTORS, "--model", "m"], catch_exceptions=False)
