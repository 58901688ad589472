from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from pluralllm.client.disclosure.policy import (
    DEFAULT_POLICY,
    NEW_KEYS,
    Policy,
    RespondentPrivacy,
    RoundPrivacy,
    load_policy,
    new_policy,
)
from pluralllm.common.errors.tree import InvalidConfig

FILE_OF_0_2_0 = """\
max_local_steps = 1000
max_rounds = 10000
min_cohort = 2
max_learning_rate = 1.0
allowed_embedding_models = ["*"]
allow_evaluation = true
allow_rewards = false
allowed_metrics = ["loss", "base_distance", "alignment_score", "wasserstein_score"]
"""


def policy_of(folder: Path, text: str) -> Policy:
    path = folder / "policy.toml"
    path.write_text(text)
    return load_policy(path)


@pytest.mark.parametrize(
    ("text", "expected_text"),
    [
        ("max_local_step = 5", "max_local_step: unknown key"),
        ("max_rounds = 0", "max_rounds: Input should be greater than 0"),
        (
            'allowed_metrics = ["gradients"]',
            "gradients unknown; allowed: alignment_score, base_distance, context_gain, loss, wasserstein",
        ),
        ("max_rounds = ", "not TOML"),
        (
            'allowed_presets = ["defualt"]',
            "allowed_presets.0: unknown preset; allowed: default, attention, paper, fourier, or * for",
        ),
        (
            'allowed_presets = ["default", "sums"]',
            "allow_sums = true does: a coordinator can compute this group's answers from its sums",
        ),
        ("min_questions_behind = 0", "min_questions_behind: Input should be greater than 0"),
        ("max_task_minutes = inf", "max_task_minutes: Input should be a finite number"),
        ("max_worker_memory_gib = 0.0", "max_worker_memory_gib: Input should be greater than 0"),
    ],
)
def test_a_bad_policy_file_is_refused_with_file_and_key(tmp_path: Path, text: str, expected_text: str) -> None:
    with pytest.raises(InvalidConfig) as refused:
        policy_of(tmp_path, text)
    assert expected_text in str(refused.value)
    assert str(tmp_path / "policy.toml") in str(refused.value)


def test_an_older_file_keeps_its_values_and_has_the_defaults_of_the_new_keys(tmp_path: Path) -> None:
    policy, default = policy_of(tmp_path, FILE_OF_0_2_0), Policy()
    assert policy.min_cohort == 2
    assert policy.allowed_embedding_models == ("*",)
    assert policy.missing_keys == tuple(sorted(NEW_KEYS))
    assert [getattr(policy, key) for key in NEW_KEYS] == [getattr(default, key) for key in NEW_KEYS]


def test_a_file_of_this_release_misses_no_key(tmp_path: Path) -> None:
    assert policy_of(tmp_path, DEFAULT_POLICY).missing_keys == ()
    assert set(Policy.model_fields) >= NEW_KEYS


def test_a_file_written_today_asks_for_three_clients_and_for_consent_to_unknown_settings(tmp_path: Path) -> None:
    for policy in (policy_of(tmp_path, DEFAULT_POLICY), policy_of(tmp_path, ""), load_policy(None)):
        assert policy.min_cohort == 3
        assert policy.allowed_presets == ("default", "attention", "paper")


DEFAULTS = {
    "max_local_steps": 1_000,
    "max_rounds": 10_000,
    "max_learning_rate": 1.0,
    "max_questions_of_step": 2_000,
    "max_model_mib": 1_024,
    "max_task_minutes": 120.0,
    "compare_questions": False,
    "max_worker_memory_gib": 16.0,
    "allowed_embedding_models": ("sentence-transformers/*@main",),
    "allowed_embedders": (),
    "allowed_aggregators": (),
    "allowed_presets": ("default", "attention", "paper"),
    "min_cohort": 3,
    "min_questions_behind": 30,
    "max_evaluations_of_run": 32,
    "max_scores_per_question": 1.0,
    "max_runs_a_day": 10,
    "allow_evaluation": True,
    "allow_rewards": False,
    "allow_sums": False,
    "allowed_metrics": {"loss", "base_distance", "alignment_score", "wasserstein_score", "context_gain"},
    "private_rounds": {
        "rounds": "allowed",
        "colluders": 1,
        "hidden_among": 3,
        "trust": "pinned",
        "verify_share": None,
        "evaluation": "sum",
    },
    "privacy": None,
}


def test_a_partner_that_says_nothing_allows_this_much() -> None:
    assert Policy().model_dump() == DEFAULTS


@pytest.mark.parametrize("key", [key for key, value in DEFAULTS.items() if type(value) in (int, float)])
def test_every_limit_is_above_zero_and_finite(tmp_path: Path, key: str) -> None:
    for bad in ("0", "0.0", "-1", "nan", "inf"):
        with pytest.raises(InvalidConfig, match=key):
            policy_of(tmp_path, f"{key} = {bad}")
    least = "1" if isinstance(DEFAULTS[key], int) else "1e-9"
    assert getattr(policy_of(tmp_path, f"{key} = {least}"), key) == float(least)


def test_a_policy_cannot_be_changed_and_any_settings_are_allowed_by_a_star(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, 'allowed_presets = ["*"]\nallowed_metrics = ["loss"]')
    assert (list(policy.allowed_presets), set(policy.allowed_metrics)) == (["*"], {"loss"})
    with pytest.raises(ValidationError):
        policy.min_cohort = 1  # type: ignore[misc]


def test_a_new_install_demands_private_rounds_of_pinned_members_and_an_older_file_goes_on_with_plain_ones(
    tmp_path: Path,
) -> None:
    new = policy_of(tmp_path, DEFAULT_POLICY).private_rounds
    assert (new.rounds, new.trust) == ("required", "pinned")
    assert new == RoundPrivacy(rounds="required")
    assert policy_of(tmp_path, FILE_OF_0_2_0).private_rounds.rounds == "allowed"


@pytest.mark.parametrize(
    "line",
    [
        *('rounds = "never"', "colluders = -1", "colluders = 129", "hidden_among = 0", "hidden_among = 129"),
        *('trust = "all"', "verify_share = 1.1", "verify_share = nan", 'evaluation = "all"', "pins = 1"),
    ],
)
def test_a_bad_value_in_the_table_of_private_rounds_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(InvalidConfig, match=rf"private_rounds\.{line.split(maxsplit=1)[0]}"):
        policy_of(tmp_path, f"[private_rounds]\n{line}\n")


def test_a_policy_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"policy\.toml"):
        load_policy(tmp_path / "policy.toml")


@pytest.mark.parametrize("table", [Policy(), RespondentPrivacy(), RoundPrivacy()])
def test_nothing_changes_a_policy_after_it_was_read(table: BaseModel) -> None:
    for name in type(table).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(table, name, getattr(table, name))


def test_the_table_privacy_allows_one_respondent_a_budget_of_four_and_has_its_ledger_beside_the_state(
    tmp_path: Path,
) -> None:
    table = policy_of(tmp_path, "[privacy]").privacy
    assert table == RespondentPrivacy()
    assert (RespondentPrivacy().respondents_epsilon, RespondentPrivacy().delta) == (4.0, 1e-6)
    assert RespondentPrivacy().ledger_folder(tmp_path) == tmp_path / "privacy"
    assert RespondentPrivacy(ledger=tmp_path / "shared").ledger_folder(tmp_path) == tmp_path / "shared"


def test_the_policy_of_a_partner_without_noise_has_the_table_in_comments_line_by_line(tmp_path: Path) -> None:
    with_noise, without = new_policy(noise=True).splitlines(), new_policy(noise=False).splitlines()
    assert policy_of(tmp_path, "\n".join(without)).privacy is None
    assert policy_of(tmp_path, "\n".join(with_noise)).privacy is not None
    changed = [(line, other) for line, other in zip(with_noise, without, strict=True) if line != other]
    assert changed
    assert all(other == f"# {line}" and not line.startswith("#") for line, other in changed)
