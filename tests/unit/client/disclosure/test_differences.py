"""Every setting of a run that shows more than the presets do is named; what does not change an update is free."""

import typing
from pathlib import Path
from typing import Any

import pytest
from support.installed_package import METHODS, RULE, VECTORS, plugin

from pluralllm.cli.new_spec import new_spec
from pluralllm.client.disclosure.differences import (
    COMPARED,
    MAX_LINE,
    Difference,
    differences_of,
    differences_of_task,
    held_out_difference,
    summary,
)
from pluralllm.client.disclosure.policy import EXAMINED_PRESETS, SUMS, Policy
from pluralllm.common.words.names import TaskKind
from pluralllm.common.words.spec import PRESETS, GroupRole, RunSpec, merge, preset_values, spec_from_toml
from pluralllm.common.words.usual_embedding import load_spec

EXAMPLES = Path(__file__).parents[4] / "deploy" / "examples"
# Tables and fields that a coordinator may set as it likes: the client asks for no consent. A demand of noise (`privacy`) can only
# make a client refuse, by its own ledger.
FREE = {"title", "seed", "rounds", "groups", "round", "updates", "aggregation", "privacy", "private_rounds"}
OWN_RULE = {"format", "rewards"}
REWARDS = {"source": "runs/r/models/3", "model_digest": "a" * 64}


def spec_of(preset: str = "default", **changes: Any) -> RunSpec:
    """Returns a run spec with a preset's values, and with three clients in each round at least."""
    dimension = 384 * len(preset_values(preset)["embedding"]["templates"])
    model = {"model": "sentence-transformers/all-MiniLM-L6-v2", "dimension": dimension}
    values = merge(preset_values(preset), {"embedding": model, "round": {"min_clients": 8, "target_clients": 8}})
    return RunSpec.model_validate(merge(values, changes))


def fields_of(spec: RunSpec, **policy: Any) -> list[str]:
    return [difference.field for difference in differences_of(Policy(**policy), spec)]


@pytest.mark.parametrize("preset", EXAMINED_PRESETS)
def test_a_run_with_the_settings_of_a_preset_needs_no_consent(preset: str) -> None:
    assert differences_of(Policy(), spec_of(preset)) == ()


@pytest.mark.parametrize("preset", sorted({*PRESETS} - {*EXAMINED_PRESETS, SUMS}))
def test_a_preset_that_was_not_examined_needs_consent_unless_the_policy_lists_it(preset: str) -> None:
    assert fields_of(spec_of(preset)) != []
    assert fields_of(spec_of(preset), allowed_presets=[preset]) == []
    assert fields_of(spec_of(preset, training={"local_steps": 1}), allowed_presets=[preset]) == ["training.local_steps"]


def test_a_run_of_sums_asks_about_no_setting_once_the_policy_allows_sums() -> None:
    changed = spec_of(SUMS, evaluation={"draws": 7})
    assert fields_of(changed, allow_sums=True) == []
    assert "predictor.architecture" in fields_of(changed)
    assert fields_of(spec_of("fourier"), allow_sums=True) != []
    assert fields_of(spec_of(SUMS, round={"min_clients": 2}), allow_sums=True) == ["round.min_clients"]


def test_the_sample_run_needs_no_consent() -> None:
    assert differences_of(Policy(), load_spec(EXAMPLES / "run.toml")) == ()


@pytest.mark.parametrize("preset", EXAMINED_PRESETS)
def test_a_new_spec_and_one_that_names_the_embedding_model_only_need_no_consent(preset: str) -> None:
    assert differences_of(Policy(), spec_from_toml(new_spec(preset=preset), "new")) == ()
    least = f'preset = "{preset}"\n[embedding]\nmodel = "any"\ndimension = 8\n'
    assert differences_of(Policy(), spec_from_toml(least, "least")) == ()


@pytest.mark.parametrize("preset", EXAMINED_PRESETS)
@pytest.mark.parametrize(
    "changes",
    [
        {"title": "another", "seed": 2**62, "rounds": 10_000},
        {"round": {"min_clients": 3, "target_clients": 1_000, "evaluate_every": 1, "deadline_s": 9.0}},
        {"aggregation": {"optimizer": "fedadam", "server_learning_rate": 0.1, "weighting": "q_fair", "fairness": 9.0}},
        {"updates": {"encoding": "int8"}},
        {"groups": {"train": [f"g{number}" for number in range(9)], "held_out": ["h"]}},
        {"evaluation": {"holdout_share": 0.2}},
        {"evaluation": {"holdout_share": 0.1}},
        {"embedding": {"model": "sentence-transformers/other", "revision": "v2", "dimension": 4}},
        {"embedding": {"dimension": 4, "probes": []}},
    ],
)
def test_what_does_not_change_an_update_is_free(preset: str, changes: dict[str, Any]) -> None:
    assert differences_of(Policy(), spec_of(preset, **changes)) == ()


@pytest.mark.parametrize(
    ("table", "field", "value"),
    [
        ("predictor", "features", 4096),
        ("predictor", "group_rank", 17),
        ("predictor", "question_length_scale", 1.0),
        ("predictor", "option_length_scale", 1.0),
        ("predictor", "position_length_scale", 1.0),
        ("predictor", "weak_question_share", 0.2),
        ("predictor", "option_only_share", 0.2),
        ("predictor", "position_share", 0.0),
        ("predictor", "dropout", 0.0),
        ("predictor", "dropout", 0.20000001),
        ("predictor", "scale", 1e-30),
        ("predictor", "noise", 100.0),
        ("training", "optimizer", "sgd"),
        ("training", "learning_rate", 1.0),
        ("training", "schedule", "constant"),
        ("training", "cosine_steps", 1),
        ("training", "keep_optimizer_state", True),
        ("training", "local_steps", 1),
        ("training", "batch_episodes", 2),
        ("training", "loss", "cross_entropy"),
        ("training", "sharpness_spread", 0.0),
        ("training", "target_temperature", 0.1),
        ("training", "gradient_clip_norm", 1e-9),
        ("training", "proximal_mu", 1e9),
        ("training", "episodes", {"min_context": 1}),
        ("training", "episodes", {"max_context": 10}),
        ("training", "episodes", {"min_targets": 1}),
        ("training", "episodes", {"max_targets": 1_000}),
        ("evaluation", "context_questions", 1),
        ("evaluation", "draws", 1),
        ("embedding", "max_tokens", 8),
        ("embedding", "templates", ["{letter}", "{option}"]),
        ("embedding", "templates", ["{option}", "{question}"]),
    ],
)
def test_each_setting_that_is_not_the_presets_needs_consent(table: str, field: str, value: object) -> None:
    named = fields_of(spec_of("default", **{table: {field: value}}), allowed_presets=["default"])
    inner = f".{next(iter(value))}" if isinstance(value, dict) else ""
    assert named == [f"{table}.{field}{inner}"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("d_model", 4096),
        ("embedder_layers", 3),
        ("layers", 2),
        ("heads", 2),
        ("feedforward", 8),
        ("dropout", 0.0),
        ("dropout", 0.10000001),
        ("input_scale", "none"),
        ("share_scale", 1e-30),
    ],
)
def test_each_setting_of_an_attention_predictor_that_is_not_the_presets_needs_consent(
    field: str, value: object
) -> None:
    assert fields_of(spec_of("attention", predictor={field: value})) == [f"predictor.{field}"]


def test_unnormalized_embeddings_need_consent() -> None:
    changes = {"embedding": {"normalize": False}, "predictor": {"input_scale": "none"}}  # the one needs the other
    assert fields_of(spec_of("attention", **changes)) == ["predictor.input_scale", "embedding.normalize"]


def test_a_policy_of_an_earlier_release_means_the_earlier_default_as_well() -> None:
    assert fields_of(spec_of("attention"), allowed_presets=["default", "paper"]) == []
    assert "predictor.d_model" in fields_of(spec_of("attention"), allowed_presets=["paper"])
    assert fields_of(spec_of("default"), allowed_presets=["attention"]) != []


@pytest.mark.parametrize("preset", EXAMINED_PRESETS)
def test_the_format_without_limits_on_one_members_part_needs_consent(preset: str) -> None:
    assert fields_of(spec_of(preset, format="pluralllm.run/1")) == ["format"]


def test_every_table_of_the_run_spec_is_compared_or_free_or_has_a_rule() -> None:
    """The author of a new table must decide what a coordinator can learn by it."""
    assert set(RunSpec.model_fields) == set(COMPARED) | FREE | OWN_RULE
    for table, left_out in COMPARED.items():
        annotation: Any = RunSpec.model_fields[table].annotation
        for model in typing.get_args(annotation) or (
            annotation,
        ):  # the predictor table has one class for each architecture
            fields = typing.get_args(model)[0].model_fields if typing.get_args(model) else model.model_fields
            assert left_out <= set(fields)


def test_the_nearest_preset_is_shown() -> None:
    (difference,) = differences_of(Policy(), spec_of("paper", training={"local_steps": 1}))
    assert difference.text == "training.local_steps is 1, allowed is 6 (allowed_presets: paper)"


def test_a_preset_that_the_policy_does_not_list_needs_consent() -> None:
    assert fields_of(spec_of("default"), allowed_presets=["default"]) == []
    assert "training.loss" in fields_of(spec_of("paper"), allowed_presets=["default"])
    assert fields_of(spec_of("default"), allowed_presets=[]) == ["settings"]


@pytest.mark.parametrize("min_clients", [1, 2, 3])
def test_a_round_of_fewer_clients_than_the_policy_demands_needs_consent(min_clients: int) -> None:
    spec = spec_of(round={"min_clients": min_clients, "target_clients": 8})
    needed = ["round.min_clients"] if min_clients < 3 else []
    assert fields_of(spec) == needed
    assert fields_of(spec, allowed_presets=["*"]) == needed, "min_cohort is a key of its own"
    assert fields_of(spec, min_cohort=min_clients) == []


def test_a_rule_that_leaves_updates_out_needs_consent_if_fewer_count_than_the_policy_demands() -> None:
    aggregation = {"rule": "multi_krum", "assumed_attackers": 2, "weighting": "uniform"}
    spec = spec_of(round={"min_clients": 7, "target_clients": 8}, aggregation=aggregation)
    assert fields_of(spec, min_cohort=5) == []
    (difference,) = differences_of(Policy(min_cohort=6), spec)
    assert difference.text.startswith("round.min_clients is 7, of which 5 count, allowed is at least 6")


def test_rewards_need_consent_to_each_run_although_the_policy_allows_them() -> None:
    spec = spec_of(rewards=REWARDS)
    assert fields_of(spec, allow_rewards=True) == ["rewards"]
    assert fields_of(spec, allow_rewards=True, allowed_presets=["*"]) == []


def test_a_policy_that_allows_all_settings_never_asks_about_them() -> None:
    spec = spec_of(training={"local_steps": 1, "optimizer": "sgd"}, predictor={"dropout": 0.0})
    assert fields_of(spec, allowed_presets=["*"]) == []


def test_no_text_of_the_coordinator_reaches_a_terminal_raw() -> None:
    (difference,) = differences_of(
        Policy(), spec_of(embedding={"templates": ["\x1b[2J\u202e{question}\n", "{option}"]})
    )
    assert difference.text.isascii()
    assert difference.text.isprintable()


def test_a_summary_keeps_the_first_difference_and_counts_the_ones_that_do_not_fit() -> None:
    one = Difference("f" * 40, "a" * 500, "b" * 500, "allowed_presets: default", "")
    assert "1 more" not in summary((one,))
    assert len(summary((one,))) <= MAX_LINE
    text = summary((one,) * 9)
    assert len(text) <= MAX_LINE + len("; and 9 more")
    assert text.endswith("; and 8 more")
    short = Difference("f", "1", "2", "k", "")
    assert summary((short, short)) == "f is 1, allowed is 2 (k); f is 1, allowed is 2 (k)"


def test_a_group_that_trains_is_asked_before_a_run_that_holds_it_out() -> None:
    spec, policy = spec_of(groups={"train": [f"g{number}" for number in range(9)], "held_out": ["h"]}), Policy()
    (difference,) = held_out_difference(policy, "h", GroupRole.TRAIN, spec)
    assert difference.text == 'groups.held_out is "h", allowed is role train (own role of this client)'
    assert held_out_difference(policy, "h", GroupRole.HELD_OUT, spec) == ()
    assert held_out_difference(policy, "g1", GroupRole.TRAIN, spec) == ()
    assert held_out_difference(Policy(allowed_presets=("*",)), "h", GroupRole.TRAIN, spec) == ()


def task_fields(rounds: str, clients: int, kind: TaskKind = TaskKind.TRAIN, **changes: Any) -> list[str]:
    """Returns the fields that a task of a run with this many clients needs consent to."""
    spec = spec_of(round={"min_clients": min(3, clients), "target_clients": clients}, **changes)
    policy = Policy.model_validate({"min_cohort": 1, "private_rounds": {"rounds": rounds}})
    return [difference.field for difference in differences_of_task(policy, "G", GroupRole.TRAIN, spec, kind)]


def test_training_in_a_plain_run_of_few_clients_needs_consent_where_private_rounds_are_required() -> None:
    assert [task_fields("required", clients) for clients in (2, 3, 4)] == [["private_rounds"], ["private_rounds"], []]
    assert task_fields("allowed", 3) == []
    assert task_fields("required", 3, TaskKind.EVALUATE) == []
    assert task_fields("required", 3, TaskKind.REWARD) == []
    private: dict[str, Any] = {"private_rounds": {"colluders": 1}, "aggregation": {"max_examples": 1_024}}
    assert task_fields("required", 3, **private) == []


def test_a_partner_that_is_asked_before_the_first_evaluation_is_asked_about_the_training_too() -> None:
    asked = {"training": {"local_steps": 7}}
    assert task_fields("required", 3, TaskKind.EVALUATE, **asked) == ["training.local_steps", "private_rounds"]
    assert task_fields("required", 4, TaskKind.EVALUATE, **asked) == ["training.local_steps"]
    assert task_fields("allowed", 3, TaskKind.EVALUATE, **asked) == ["training.local_steps"]
    held_out = {**asked, "groups": {"train": ["a", "b", "c"], "held_out": ["G"]}}
    assert "private_rounds" not in task_fields("required", 3, TaskKind.EVALUATE, **held_out)


def test_an_aggregator_of_another_package_waits_for_consent_unless_the_policy_names_the_package() -> None:
    spec = spec_of(aggregation={"rule": "plugin", "plugin": plugin(RULE)})
    [difference] = differences_of(Policy(allowed_presets=("*",)), spec)
    assert difference.text == (
        "aggregation.plugin is clamped-mean of town-hall-methods==1.0, allowed is the rules of this release "
        "(allowed_aggregators)"
    )
    assert "everybody who reads the model learns" in difference.danger
    assert fields_of(spec, allowed_aggregators=[METHODS]) == []
    assert fields_of(spec, allowed_aggregators=[f"{METHODS}==1.0"]) == []
    assert fields_of(spec, allowed_aggregators=[f"{METHODS}==1.1"]) == ["aggregation.plugin"]
    assert fields_of(spec, allowed_embedders=[METHODS]) == ["aggregation.plugin"]


def test_the_options_of_an_embedder_need_consent_and_its_package_has_a_key_of_its_own() -> None:
    values = spec_of().model_dump(mode="json")
    usual = {key: values["embedding"][key] for key in ("dimension", "templates", "max_tokens", "normalize")}
    for options, fields in (({}, []), ({"width": "9"}, ["embedding.plugin.options.width"])):
        spec = RunSpec.model_validate({**values, "embedding": {**usual, "plugin": plugin(VECTORS, **options)}})
        assert fields_of(spec) == fields
