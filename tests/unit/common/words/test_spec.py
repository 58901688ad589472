import json
from pathlib import Path

import pytest

from pluralllm.common.errors.tree import InvalidSpec
from pluralllm.common.words.ids import Digest, ModelVersion, RunId
from pluralllm.common.words.names import ModelName
from pluralllm.common.words.reward_weights import RewardOptions
from pluralllm.common.words.spec import (
    PRESETS,
    Aggregation,
    GroupRole,
    Groups,
    RoundPolicy,
    RunSpec,
    Updates,
    load_spec,
    parse_spec,
)

MINIMAL = '[embedding]\nmodel = "m"\ndimension = 8\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_needs_no_more_than_the_embedding_model(tmp_path: Path, preset: str) -> None:
    spec = load_spec(written(tmp_path, f'preset = "{preset}"\n{MINIMAL}'))
    assert parse_spec(spec.canonical_json(), "again") == spec


def test_the_paper_preset_has_the_papers_constants(tmp_path: Path) -> None:
    spec = load_spec(written(tmp_path, f'preset = "paper"\n{MINIMAL}'))
    assert (spec.rounds, spec.training.local_steps, spec.training.learning_rate) == (100, 6, 3e-4)
    assert (spec.predictor.layers, spec.predictor.d_model, spec.predictor.heads) == (6, 128, 4)
    assert (spec.training.episodes.min_context, spec.training.episodes.max_targets) == (10, 100)
    assert (spec.round.target_clients, spec.evaluation.context_questions) == (8, 20)


def test_the_hash_is_over_the_content_and_not_the_layout_of_the_file(tmp_path: Path) -> None:
    one = load_spec(written(tmp_path, f"seed = 3\nrounds = 5\n{MINIMAL}"))
    other = load_spec(written(tmp_path, f"# a comment\nrounds = 5\nseed = 3\n{MINIMAL}"))
    changed = load_spec(written(tmp_path, f"seed = 4\nrounds = 5\n{MINIMAL}"))
    assert one.sha256() == other.sha256() != changed.sha256()


def test_a_group_trains_only_if_its_client_and_the_spec_agree() -> None:
    train, held_out = GroupRole.TRAIN, GroupRole.HELD_OUT
    named, any_group = Groups(train=("a",), held_out=("b",)), Groups()
    assert [named.role_of("a", train), named.role_of("a", held_out)] == [train, held_out]
    assert [named.role_of("b", train), named.role_of("c", train)] == [held_out, None]
    assert [any_group.role_of("c", train), any_group.role_of("c", held_out)] == [train, held_out]


@pytest.mark.parametrize(
    ("text", "expected_text"),
    [
        (f"rouns = 5\n{MINIMAL}", "rouns: unknown key"),
        (f"rounds = 0\n{MINIMAL}", "rounds: Input should be greater than or equal to 1 (given: 0)"),
        (f"{MINIMAL}[round]\nmin_clients = 5\ntarget_clients = 3\n", "min_clients 5 is above target_clients 3"),
        (f'{MINIMAL}[groups]\ntrain = ["a", "b"]\nheld_out = ["a"]\n', "twice: a"),
        (f"{MINIMAL}[predictor]\nheads = 3\n", "heads 3 does not divide d_model 256"),
        (f"{MINIMAL}[training]\nlearning_rate = -1.0\n", "training.learning_rate: Input should be greater than 0"),
        ('[embedding]\nmodel = "m"\ndimension = 8\ntemplates = ["{answer}"]\n', "may use {question}"),
        ('[embedding]\nmodel = "m"\ndimension = 7\n', "dimension 7 is not a multiple of the 2 templates"),
        (f"{MINIMAL}normalize = false\n", "unit_variance is for unit vectors"),
        (
            f'{MINIMAL}[aggregation]\noptimizer = "adam"\n',
            "optimizer: Input should be 'fedavg', 'fedavgm', 'fedadam' or",
        ),
        (f"{MINIMAL}[aggregation]\nmomentum = 1.0\n", "aggregation.momentum: Input should be less than 1 (given: 1.0)"),
        (
            f"{MINIMAL}[aggregation]\nsecond_moment = -0.1\n",
            "second_moment: Input should be greater than or equal to 0",
        ),
        (
            f"{MINIMAL}[aggregation]\nadaptivity = 0.0\n",
            "aggregation.adaptivity: Input should be greater than or equal",
        ),
        (f'{MINIMAL}[aggregation]\nweighting = "fair"\n', "'q_fair', 'agnostic' or 'adaptive'"),
        (f"{MINIMAL}[aggregation]\nfairness = 0.0\n", "aggregation.fairness: Input should be greater than 0"),
        (f"{MINIMAL}[aggregation]\nfairness = inf\n", "aggregation.fairness: Input should be a finite number"),
        (f"{MINIMAL}min_cosine = 0.99\n", "embedding.min_cosine: Input should be greater than or equal to 0.999"),
        (f'preset = "best"\n{MINIMAL}', "allowed: default, paper"),
        ("rounds = \n", "not TOML"),
    ],
)
def test_a_bad_spec_is_refused_with_file_key_and_what_is_allowed(tmp_path: Path, text: str, expected_text: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InvalidSpec) as refused:
        load_spec(path)
    assert expected_text in str(refused.value)
    assert str(path) in str(refused.value)


def test_a_spec_has_the_hash_it_had_in_earlier_releases(tmp_path: Path) -> None:
    """No default ever changes, because it would turn a stored spec into another job."""
    spec = load_spec(written(tmp_path, '[embedding]\nmodel = "m"\ndimension = 8\n'))
    assert spec.sha256() == "bcd2c35b0ce5393505dc10a21e59cb85be0fef12562a1d838ec627e8ffaed329"
    assert parse_spec(spec.canonical_json(), "again") == spec


MODEL, DIGEST = ModelName(RunId("first"), ModelVersion(7)), Digest("a1" * 32)


def test_a_reward_run_keeps_what_its_predictor_needs_and_nothing_about_training_rounds() -> None:
    source = RunSpec.model_validate(
        {
            "title": "t",
            "seed": 3,
            "rounds": 4,
            "groups": {"train": ["a", "b"], "held_out": ["c"]},
            "round": {"gather_s": 1, "max_extensions": 3},
            "predictor": {"d_model": 8, "heads": 2},
            "updates": {"encoding": "int8"},
            "aggregation": {"optimizer": "fedadam"},
            "embedding": {"model": "m", "dimension": 8},
        }
    )
    spec = source.for_rewards(MODEL, DIGEST, RewardOptions(rule="min", batches=9), "here")
    assert spec.rewards is not None
    assert (spec.rewards.source, spec.rewards.model_digest) == ("runs/first/models/7", DIGEST)
    assert spec.rewards.aggregation.rule == "min"
    kept = ("title", "seed", "predictor", "training", "evaluation", "embedding")
    assert [getattr(spec, name) for name in kept] == [getattr(source, name) for name in kept]
    assert (spec.rounds, spec.groups, spec.updates, spec.aggregation) == (9, Groups(), Updates(), Aggregation())
    assert spec.round == RoundPolicy(
        min_clients=2, target_clients=100, deadline_s=60, grace_after_quorum_s=5, on_missed_quorum="skip"
    )


def test_a_reward_run_asks_at_least_its_quorum() -> None:
    source = RunSpec.model_validate({"embedding": {"model": "m", "dimension": 8}})
    options = RewardOptions(min_clients=5, target_clients=3)
    assert source.for_rewards(MODEL, DIGEST, options, "here").round.target_clients == 5


def test_a_reward_option_out_of_bounds_is_refused_with_its_key() -> None:
    source = RunSpec.model_validate({"embedding": {"model": "m", "dimension": 8}})
    with pytest.raises(InvalidSpec, match=r"of run tuning.*\n  rewards\.aggregation\.temperature: "):
        source.for_rewards(MODEL, DIGEST, RewardOptions(temperature=0), "of run tuning")


def test_the_largest_batch_of_rollouts_is_a_constant() -> None:
    source = RunSpec.model_validate({"embedding": {"model": "m", "dimension": 8}})
    values = source.for_rewards(MODEL, DIGEST, RewardOptions(), "here").model_dump(mode="json")
    for other in (4095, 4097):
        values["rewards"]["max_candidates"] = other
        with pytest.raises(InvalidSpec, match=r"rewards\.max_candidates"):
            parse_spec(json.dumps(values).encode(), "here")
