import json
from pathlib import Path
from typing import Any

import pytest

from pluralllm.common import __version__
from pluralllm.common.errors.tree import InvalidSpec
from pluralllm.common.words.aggregation import Aggregation
from pluralllm.common.words.ids import Digest, ModelVersion, RunId
from pluralllm.common.words.names import ModelName
from pluralllm.common.words.predictors import FourierKernel, KernelSums, NeuralProcess
from pluralllm.common.words.reward_weights import RewardOptions
from pluralllm.common.words.spec import (
    MAX_SPEC_BYTES,
    PRESETS,
    GroupRole,
    Groups,
    RoundPolicy,
    RunSpec,
    Updates,
    parse_spec,
    preset_values,
)
from pluralllm.common.words.usual_embedding import load_spec

MINIMAL = '[embedding]\nmodel = "m"\ndimension = 8\n'
KERNEL = '[predictor]\narchitecture = "fourier-kernel/1"\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_needs_no_more_than_the_embedding_model(tmp_path: Path, preset: str) -> None:
    spec = load_spec(written(tmp_path, f'preset = "{preset}"\n{MINIMAL}'))
    assert parse_spec(spec.canonical_json(), "again") == spec


def test_the_default_preset_reads_its_context_by_construction_and_fourier_is_the_same_with_fewer_steps() -> None:
    default, fourier = preset_values("default"), preset_values("fourier")
    assert default["predictor"]["architecture"] == "fourier-kernel/1"
    assert (default["rounds"], default["training"].pop("local_steps"), fourier["training"].pop("local_steps")) == (
        30,
        12,
        6,
    )
    assert default["aggregation"].pop("max_delta_norm") == 16.0, "one and a half times the longest honest update"
    assert fourier["aggregation"].pop("max_delta_norm") == 11.5
    assert default == fourier
    assert preset_values("attention")["predictor"].get("architecture", "tnp-d/1") == "tnp-d/1"


def test_the_paper_preset_has_the_papers_constants(tmp_path: Path) -> None:
    spec = load_spec(written(tmp_path, f'preset = "paper"\n{MINIMAL}'))
    assert (spec.rounds, spec.training.local_steps, spec.training.learning_rate) == (100, 6, 3e-4)
    assert isinstance(spec.predictor, NeuralProcess)
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
        (f'preset = "attention"\n{MINIMAL}[predictor]\nheads = 3\n', "heads 3 does not divide d_model 256"),
        (f"{MINIMAL}[training]\nlearning_rate = -1.0\n", "training.learning_rate: Input should be greater than 0"),
        ('[embedding]\nmodel = "m"\ndimension = 8\ntemplates = ["{answer}"]\n', "may use {question}"),
        ('[embedding]\nmodel = "m"\ndimension = 7\n', "dimension 7 is not a multiple of the 2 templates"),
        (f'preset = "attention"\n{MINIMAL}normalize = false\n', "unit_variance is for unit vectors"),
        (
            f'{MINIMAL}[predictor]\narchitecture = "tnp-d/9"\n',
            "architecture 'tnp-d/9' needs another release of PluralLLM",
        ),
        (
            f"{MINIMAL}[predictor]\narchitecture = 7\n",
            f"this is release {__version__}, which knows tnp-d/1, fourier-kernel/1 and kernel-sums/1",
        ),
        (f"{MINIMAL}{KERNEL}features = 0\n", "predictor.features: Input should be greater than or equal to 1"),
        (f"{MINIMAL}{KERNEL}d_model = 8\n", "predictor.d_model: unknown key"),
        (
            f"{MINIMAL}[predictor]\nlayers = 2\n",
            'predictor.layers belongs to the architecture tnp-d/1: name its preset, preset = "attention"',
        ),
        (f"{MINIMAL}{KERNEL}option_only_share = 0.9\n", "weak_question_share + option_only_share is above 1"),
        (f"{MINIMAL}normalize = false\n{KERNEL}", "fourier-kernel/1 reads two unit vectors"),
        (f'{MINIMAL}templates = ["{{option}}"]\n{KERNEL}', "fourier-kernel/1 reads two unit vectors"),
        (
            f'{MINIMAL}templates = ["{{question}}", "{{option}}", "{{letter}}", "{{options}}"]\n{KERNEL}',
            "fourier-kernel/1 reads two unit vectors",
        ),
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
        (f'preset = "best"\n{MINIMAL}', "allowed: default, attention, paper, fourier, sums"),
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
    """No default ever changes, because it would turn a stored spec into another job. Presets may change."""
    defaults = RunSpec.model_validate({"embedding": {"model": "m", "dimension": 8}})
    assert defaults.sha256() == "a9333f1f95a32f0388f8981ca4799b2b619c6bc3238bf75aeaf9f8da2e99def1"
    changed_since = (
        'preset = "attention"\nformat = "pluralllm.run/1"\n[round]\nmin_clients = 2\ntarget_clients = 2\n'
        "[aggregation]\nmax_examples = 100_000\n[evaluation]\nholdout_share = 0.1\n"
    )
    spec = load_spec(written(tmp_path, f'{changed_since}[embedding]\nmodel = "m"\ndimension = 8\n'))
    assert spec.sha256() == "bcd2c35b0ce5393505dc10a21e59cb85be0fef12562a1d838ec627e8ffaed329"
    assert parse_spec(spec.canonical_json(), "again") == spec


def test_a_predictor_of_another_architecture_takes_no_values_from_the_preset(tmp_path: Path) -> None:
    earlier = f'preset = "attention"\n{MINIMAL}'
    spec = load_spec(written(tmp_path, f"{earlier}{KERNEL}features = 5\n"))
    assert spec.predictor == FourierKernel(architecture="fourier-kernel/1", features=5)
    assert parse_spec(spec.canonical_json(), "again") == spec
    same = load_spec(written(tmp_path, f'{earlier}[predictor]\narchitecture = "tnp-d/1"\nheads = 4\n'))
    assert same.predictor == load_spec(written(tmp_path, f"{earlier}[predictor]\nheads = 4\n")).predictor
    assert isinstance(same.predictor, NeuralProcess)
    assert same.predictor.d_model == 256, "the preset's value"


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_limit_what_one_member_contributes_and_a_bare_spec_does_not(tmp_path: Path, preset: str) -> None:
    spec = load_spec(written(tmp_path, f'preset = "{preset}"\n{MINIMAL}'))
    limits = preset != "sums"  # without a part of a term, the sum is that of another problem
    assert (spec.format, spec.limits_members, spec.aggregation.max_examples) == ("pluralllm.run/3", limits, 1024)
    bare = RunSpec.model_validate({"embedding": {"model": "m", "dimension": 8}})
    assert (bare.format, bare.limits_members, bare.aggregation.max_examples) == ("pluralllm.run/1", False, 100_000)


RULE = MINIMAL + "[round]\nmin_clients = 7\ntarget_clients = 8\n[aggregation]\nrule = "


@pytest.mark.parametrize(
    ("text", "expected_text"),
    [
        (
            f'{RULE}"trimmed_mean"\nassumed_attackers = 4\n',
            "aggregation.rule trimmed_mean: set round.min_clients to at least 9",
        ),
        (f'{RULE}"multi_krum"\nassumed_attackers = 3\nweighting = "uniform"\n', "set round.min_clients to at least 9"),
        (f'{RULE}"multi_krum"\n', "set aggregation.weighting = uniform, because distances choose the updates"),
        (f'{RULE}"median"\n'.replace("= 7", "= 2"), "aggregation.rule median: set round.min_clients to at least 3"),
        (f'{RULE}"median_norm_clip"\n'.replace("= 7", "= 2"), "set round.min_clients to at least 3"),
        (
            f'format = "pluralllm.run/1"\n{RULE}"median"\n',
            "median: set format = pluralllm.run/3, because without its bound",
        ),
        (
            f'{RULE}"median"\n[private_rounds]\n',
            "aggregation.rule median looks at single updates; private rounds hide them: choose rule = mean",
        ),
        (f'preset = "sums"\n{MINIMAL}[aggregation]\nrule = "median"\n', "terms of sums: set aggregation.rule = mean"),
        (f'{RULE}"krum"\n', "'median_norm_clip' or 'plugin'"),
        (f'{RULE}"median"\nassumed_attackers = 0\n', "assumed_attackers: Input should be greater than or equal to 1"),
    ],
)
def test_a_rule_that_does_not_fit_the_run_is_refused_with_the_reason(
    tmp_path: Path, text: str, expected_text: str
) -> None:
    with pytest.raises(InvalidSpec) as refused:
        load_spec(written(tmp_path, text))
    assert expected_text in str(refused.value)


def test_a_reward_run_has_no_rule_over_updates() -> None:
    source = RunSpec.model_validate({"embedding": {"model": "m", "dimension": 8}})
    values = source.for_rewards(MODEL, DIGEST, RewardOptions(), "here").model_dump(mode="json")
    values |= {"format": "pluralllm.run/2", "round": {"min_clients": 5, "target_clients": 5}}
    values["aggregation"]["rule"] = "median"
    assert "rewards are not deltas" in refusal_of(values)


@pytest.mark.parametrize("rule", ["trimmed_mean", "median", "multi_krum", "median_norm_clip"])
@pytest.mark.parametrize("optimizer", ["fedavg", "fedavgm", "fedadam", "fedyogi"])
def test_rules_go_with_every_server_optimizer_and_all_but_multi_krum_with_fair_weights(
    tmp_path: Path, rule: str, optimizer: str
) -> None:
    weighting = "uniform" if rule == "multi_krum" else "agnostic"
    least = {"trimmed_mean": 5, "multi_krum": 7}.get(rule, 3)
    text = f'{RULE}"{rule}"\nassumed_attackers = 2\noptimizer = "{optimizer}"\nweighting = "{weighting}"\n'
    spec = load_spec(written(tmp_path, text.replace("min_clients = 7", f"min_clients = {least}")))
    assert parse_spec(spec.canonical_json(), "again") == spec
    assert (spec.aggregation.least_clients, spec.aggregation.counted(least)) == (
        least,
        5 if rule == "multi_krum" else least,
    )


def test_keys_of_a_rule_are_in_the_hash_only_where_they_say_something(tmp_path: Path) -> None:
    def canonical(more: str) -> dict[str, Any]:
        text = load_spec(written(tmp_path, f"{RULE}{more}")).canonical_json()
        aggregation: dict[str, Any] = json.loads(text)["aggregation"]
        return aggregation

    assert not {"rule", "assumed_attackers"} & set(canonical('"mean"\nassumed_attackers = 1\n'))
    assert canonical('"trimmed_mean"\n')["rule"] == "trimmed_mean"
    assert "assumed_attackers" not in canonical('"trimmed_mean"\n')
    assert canonical('"trimmed_mean"\nassumed_attackers = 2\n')["assumed_attackers"] == 2


SUMS = 'preset = "sums"\n' + MINIMAL


@pytest.mark.parametrize(
    ("text", "expected_text"),
    [
        ('[aggregation]\nweighting = "examples"\n', "aggregation.weighting = uniform"),
        ('[aggregation]\noptimizer = "fedavgm"\n', "aggregation.optimizer = fedavg with server_learning_rate = 1"),
        ("[aggregation]\nserver_learning_rate = 0.5\n", "aggregation.optimizer = fedavg with server_learning_rate = 1"),
        ('[updates]\nencoding = "bf16"\n', "updates.encoding = fp32"),
        ('[round]\non_missed_quorum = "skip"\n', "round.on_missed_quorum = extend or abort"),
        ("[predictor]\nsubspace_rounds = 22\n", "rounds to at least 23"),
        ('[groups]\ntrain = ["a", "b", "c", "d"]\n', "round.target_clients to 4, the number of groups.train"),
    ],
)
def test_a_run_of_sums_takes_no_setting_that_sums_do_not_have(tmp_path: Path, text: str, expected_text: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        load_spec(written(tmp_path, SUMS + text))
    assert str(refused.value).count("terms of sums: set ") == 1
    assert expected_text in str(refused.value)


def test_a_run_of_sums_at_the_limits_is_allowed(tmp_path: Path) -> None:
    groups = '[groups]\ntrain = ["a", "b", "c"]\n'
    for text in ("[predictor]\nsubspace_rounds = 21\n", '[round]\non_missed_quorum = "abort"\n', groups):
        spec = load_spec(written(tmp_path, SUMS + text))
        assert spec.sums == spec.predictor
    assert load_spec(written(tmp_path, MINIMAL)).sums is None


def test_a_reward_run_of_a_model_made_from_sums_is_no_run_of_sums(tmp_path: Path) -> None:
    spec = load_spec(written(tmp_path, SUMS)).for_rewards(MODEL, DIGEST, RewardOptions(), "here")
    assert isinstance(spec.predictor, KernelSums)
    assert spec.sums is None


def test_a_reward_run_of_a_model_from_private_rounds_is_possible(tmp_path: Path) -> None:
    source = load_spec(written(tmp_path, f"{MINIMAL}[round]\nmin_clients = 4\ntarget_clients = 5\n[private_rounds]\n"))
    spec = source.for_rewards(MODEL, DIGEST, RewardOptions(), "here")
    assert source.private_rounds is not None
    assert spec.private_rounds is None


def test_a_presets_table_of_private_rounds_is_for_private_runs_only(tmp_path: Path) -> None:
    assert load_spec(written(tmp_path, MINIMAL)).private_rounds is None
    assert "private_rounds" not in preset_values("default")
    table = preset_values("default", has_private_rounds=True)["private_rounds"]
    sizes = f"{MINIMAL}[round]\nmin_clients = 4\ntarget_clients = 5\n[private_rounds]\n"
    usual, own = (load_spec(written(tmp_path, sizes + more)).private_rounds for more in ("", "clip_norm = 2.5\n"))
    assert usual is not None
    assert own is not None
    assert (usual.clip_norm, own.clip_norm) == (table["clip_norm"], 2.5)


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


def spec_values(**changes: Any) -> dict[str, Any]:
    return {"embedding": {"model": "m", "dimension": 8}} | changes


def refusal_of(values: dict[str, Any]) -> str:
    with pytest.raises(InvalidSpec) as refusal:
        parse_spec(json.dumps(values).encode(), "here")
    return refusal.value.problems


@pytest.mark.parametrize(("train", "held_out"), [(999, 0), (1000, 0), (0, 1000), (999, 1), (500, 500)])
def test_a_spec_names_up_to_a_thousand_groups(train: int, held_out: int) -> None:
    names = [f"g{number}" for number in range(train + held_out)]
    groups = {"train": names[:train], "held_out": names[train:]}
    spec = parse_spec(json.dumps(spec_values(groups=groups)).encode(), "here")
    assert len(spec.groups.train) + len(spec.groups.held_out) == train + held_out


@pytest.mark.parametrize(("train", "held_out"), [(1001, 0), (0, 1001), (1000, 1), (501, 500)])
def test_one_group_more_is_refused(train: int, held_out: int) -> None:
    names = [f"g{number}" for number in range(train + held_out)]
    problems = refusal_of(spec_values(groups={"train": names[:train], "held_out": names[train:]}))
    assert "1000" in problems
    assert len(problems.splitlines()) == 1


@pytest.mark.parametrize(("over", "is_allowed"), [(-1, True), (0, True), (1, False)])
def test_a_spec_has_up_to_256_kib_as_canonical_json(over: int, is_allowed: bool) -> None:
    """Each letter of a name takes six bytes in the canonical form and two in the text, so the text alone decides nothing."""
    long_names = [f"{number:03} " + "\u00e9" * 25 for number in range(999)]

    def text(last: str) -> bytes:
        return json.dumps(spec_values(groups={"train": [*long_names, last]}), ensure_ascii=False).encode()

    left_bytes = MAX_SPEC_BYTES - len(parse_spec(text("x"), "here").canonical_json()) + over
    assert len(text("x")) + left_bytes < MAX_SPEC_BYTES
    widened, rest = divmod(left_bytes, 6)
    while widened:
        step = min(widened, 150)
        long_names[widened % 999] += "\u00e9" * step
        widened -= step
    if is_allowed:
        assert len(parse_spec(text("x" * (1 + rest)), "here").canonical_json()) == MAX_SPEC_BYTES + over
        return
    with pytest.raises(
        InvalidSpec, match=f"has {MAX_SPEC_BYTES + 1} bytes as canonical JSON, at most {MAX_SPEC_BYTES}"
    ):
        parse_spec(text("x" * (1 + rest)), "here")


@pytest.mark.parametrize(
    ("nested", "reason"),
    [
        ("x = " + "[" * 10_000 + "]" * 10_000, "nested too deep"),
        ("#" * (MAX_SPEC_BYTES + 1), "more than 262144 bytes"),
    ],
)
def test_a_file_that_is_too_deep_or_too_long_is_refused(tmp_path: Path, nested: str, reason: str) -> None:
    with pytest.raises(InvalidSpec, match=reason):
        load_spec(written(tmp_path, nested))


def test_an_error_lists_twenty_problems_and_counts_the_others() -> None:
    problems = refusal_of(spec_values(**{f"key{number}": 1 for number in range(25)})).splitlines()
    assert len(problems) == 21
    assert problems[-1] == "  ... and 5 more problems"


def test_an_error_shows_long_and_unprintable_keys_on_one_short_line() -> None:
    problems = refusal_of(spec_values(**{"k" * 1000: 1, "\x1b[2J\n  groups": "v" * 1000}))
    assert all(line.isprintable() and len(line) < 250 for line in problems.splitlines())
    assert len(problems.splitlines()) == 2


@pytest.mark.parametrize(
    ("number", "closing_scores", "preset", "closes"),
    [
        (4, True, "default", True),
        (4, False, "default", False),
        (3, True, "default", False),
        (1, True, "default", False),
        (4, True, "sums", False),
    ],
)
def test_a_run_closes_from_the_format_4_on(
    tmp_path: Path, number: int, closing_scores: bool, preset: str, closes: bool
) -> None:
    private = f"[private_rounds]\nclosing_scores = {str(closing_scores).lower()}\n"
    text = f'preset = "{preset}"\nformat = "pluralllm.run/{number}"\n{MINIMAL}{private}{PRIVATE_ROUND}'
    spec = load_spec(written(tmp_path, text))
    assert (spec.closes, spec.last_round) == (closes, spec.rounds + closes)
    assert not spec.model_copy(update={"private_rounds": None}).closes


PRIVATE_ROUND = "[round]\nmin_clients = 3\ntarget_clients = 3\n[aggregation]\nmax_examples = 1024\n"


@pytest.mark.parametrize(("name", "closing"), [("pluralllm.run/4", [7]), ("pluralllm.run/3", [])])
def test_the_closing_round_is_the_one_after_all_rounds_of_a_run_that_has_one(name: str, closing: list[int]) -> None:
    tables = {
        "round": {"min_clients": 4, "target_clients": 4},
        "aggregation": {"max_examples": 64},
        "private_rounds": {},
    }
    values = {"format": name, "rounds": 6, "embedding": {"model": "m", "dimension": 8}, **tables}
    spec = RunSpec.model_validate(values)
    assert [number for number in range(10) if spec.is_closing_round(number)] == closing


def test_runs_of_the_formats_before_the_third_extend_rounds_without_hope_as_their_logs_do() -> None:
    formats = [f"pluralllm.run/{number}" for number in (1, 2, 3, 4)]
    specs = [RunSpec.model_validate({"format": name, "embedding": {"model": "m", "dimension": 8}}) for name in formats]
    assert [spec.gives_up_small_sums for spec in specs] == [False, False, True, True]
