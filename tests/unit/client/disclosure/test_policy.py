from pathlib import Path

import pytest
from support.process_harness import process_spec

from pluralllm.client.disclosure.policy import Policy, check_task, load_policy, permitted_metrics
from pluralllm.common.errors.tree import InvalidConfig, PolicyForbids
from pluralllm.common.words.names import TaskKind
from pluralllm.common.words.spec import GroupRole

SPEC = process_spec()


@pytest.mark.parametrize(
    ("policy", "expected_text"),
    [
        (Policy(max_local_steps=1), "max_local_steps is 2, allowed is at most 1"),
        (Policy(max_rounds=2), "max_rounds is 3, allowed is at most 2"),
        (Policy(min_cohort=5), "min_cohort is 4, allowed is at least 5"),
        (Policy(max_learning_rate=1e-6), "max_learning_rate is 0.0003, allowed is at most 1e-06"),
        (
            Policy(allowed_embedding_models=("minilm*", "bge-*")),
            "allowed_embedding_models is tiny, allowed is minilm*, bge-*",
        ),
    ],
)
def test_a_training_task_beyond_the_policy_is_refused(policy: Policy, expected_text: str) -> None:
    with pytest.raises(PolicyForbids) as refused:
        check_task(policy, GroupRole.TRAIN, SPEC, TaskKind.TRAIN, 3, 4)
    assert expected_text in str(refused.value)


def test_the_default_policy_allows_an_ordinary_task() -> None:
    check_task(Policy(), GroupRole.TRAIN, SPEC, TaskKind.TRAIN, 3, 4)
    check_task(Policy(), GroupRole.TRAIN, SPEC, TaskKind.EVALUATE, 0, 1)


@pytest.mark.parametrize("policy", [Policy(allow_evaluation=False), Policy(allowed_metrics=frozenset({"loss"}))])
def test_evaluation_can_be_forbidden(policy: Policy) -> None:
    with pytest.raises(PolicyForbids):
        check_task(policy, GroupRole.TRAIN, SPEC, TaskKind.EVALUATE, 1, 4)


def test_a_held_out_group_never_trains_whatever_is_asked() -> None:
    with pytest.raises(PolicyForbids, match="this group is evaluated only"):
        check_task(Policy(), GroupRole.HELD_OUT, SPEC, TaskKind.TRAIN, 3, 4)
    check_task(Policy(), GroupRole.HELD_OUT, SPEC, TaskKind.EVALUATE, 3, 4)


def test_only_permitted_metrics_leave() -> None:
    policy = Policy(allowed_metrics=frozenset({"alignment_score"}))
    assert permitted_metrics(policy, {"loss": 1.0, "alignment_score": 0.5}) == {"alignment_score": 0.5}


def test_the_base_distance_leaves_only_if_the_partner_lets_it() -> None:
    metrics = {"loss": 1.0, "base_distance": 0.3}
    assert permitted_metrics(Policy(), metrics) == metrics
    assert permitted_metrics(Policy(allowed_metrics=frozenset({"loss"})), metrics) == {"loss": 1.0}


@pytest.mark.parametrize(
    ("text", "expected_text"),
    [
        ("max_local_step = 5", "max_local_step: unknown key"),
        ("max_rounds = 0", "max_rounds: Input should be greater than 0"),
        (
            'allowed_metrics = ["gradients"]',
            "gradients unknown; allowed: alignment_score, base_distance, loss, wasserstein",
        ),
        ("max_rounds = ", "not TOML"),
    ],
)
def test_a_bad_policy_file_is_refused_with_file_and_key(tmp_path: Path, text: str, expected_text: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(InvalidConfig) as refused:
        load_policy(path)
    assert expected_text in str(refused.value)
    assert str(path) in str(refused.value)
