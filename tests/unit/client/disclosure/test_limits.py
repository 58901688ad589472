"""Each limit of the policy: the value that is still allowed, and the next one, which is not."""

from pathlib import Path
from typing import Any

import pytest
from support.installed_package import METHODS, VECTORS, plugin
from support.open_policy import open_policy
from support.process_harness import process_spec
from support.tasks import task_of

from pluralllm.client.disclosure.limits import MIB, check_task, check_updates_behind, is_closing
from pluralllm.client.disclosure.policy import Policy, load_policy
from pluralllm.common.errors.tree import PolicyForbids
from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.words.embedding import Embedding
from pluralllm.common.words.names import TaskKind
from pluralllm.common.words.private_rounds import PrivateRounds
from pluralllm.common.words.spec import GroupRole, Groups, RunSpec

GROUP = "G"
SPEC = process_spec()
REWARDS = {"source": "runs/r/models/3", "model_digest": "a" * 64}


def check(
    policy: Policy,
    spec: RunSpec = SPEC,
    kind: TaskKind = TaskKind.TRAIN,
    role: GroupRole = GroupRole.TRAIN,
    **task_changes: Any,
) -> None:
    check_task(policy, GROUP, role, spec, task_of(spec, kind, **task_changes))


def refusal(policy: Policy, spec: RunSpec = SPEC, kind: TaskKind = TaskKind.TRAIN, **more: Any) -> str:
    """Returns the text of the refusal; fails if the task is allowed."""
    with pytest.raises(PolicyForbids) as refused:
        check(policy, spec, kind, **more)
    return str(refused.value)


@pytest.mark.parametrize(
    ("allowed", "forbidden", "expected_text"),
    [
        ({"max_local_steps": 2}, {"max_local_steps": 1}, "max_local_steps is 2, allowed is at most 1"),
        ({"max_rounds": 3}, {"max_rounds": 2}, "max_rounds is 3, allowed is at most 2"),
        (
            {"max_learning_rate": 0.0003},
            {"max_learning_rate": 0.00029},
            "max_learning_rate is 0.0003, allowed is at most 0.00029",
        ),
        (
            {"max_questions_of_step": 40},
            {"max_questions_of_step": 39},
            "max_questions_of_step is 40, allowed is at most 39",
        ),
        (
            {"allowed_embedding_models": ["minilm*", "tiny"]},
            {"allowed_embedding_models": ["minilm*", "bge-*"]},
            "allowed_embedding_models is tiny@main, allowed is minilm*, bge-*",
        ),
    ],
)
def test_a_training_task_at_the_limit_is_allowed_and_one_beyond_it_is_refused(
    allowed: dict[str, Any], forbidden: dict[str, Any], expected_text: str
) -> None:
    check(open_policy(**allowed))
    assert expected_text in refusal(open_policy(**forbidden))


CLOSING = process_spec(
    rounds=2,
    format="pluralllm.run/4",
    private_rounds={},
    round={"min_clients": 3, "target_clients": 3},
    aggregation={"max_examples": 1_024},
)


@pytest.mark.parametrize("role", GroupRole)
def test_every_group_takes_part_in_the_closing_round(role: GroupRole) -> None:
    policy = open_policy(max_rounds=2, private_rounds={"hidden_among": 2})
    check(policy, CLOSING, role=role, round_number=3, base_version=2)
    assert "max_rounds is 4, allowed is at most 3" in refusal(policy, CLOSING, round_number=4, base_version=2)


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({}, 2),
        ({}, 4),
        ({"format": "pluralllm.run/3"}, 2),
        ({"private_rounds": PrivateRounds(closing_scores=False)}, 2),
        ({"private_rounds": None}, 2),
    ],
    ids=["a round that trains", "after the closing round", "an earlier format", "no closing round", "plain rounds"],
)
def test_a_group_that_is_held_out_takes_part_in_no_other_round(changes: dict[str, Any], number: int) -> None:
    policy = open_policy(private_rounds={"hidden_among": 2})
    spec, held_out = CLOSING.model_copy(update=changes), GroupRole.HELD_OUT
    refused = refusal(policy, spec, role=held_out, round_number=number, base_version=1)
    assert "held_out: this group is evaluated only" in refused


def test_a_run_has_no_more_trainings_than_its_spec_has_rounds() -> None:
    check(open_policy(), process_spec(rounds=3))
    assert "max_rounds is 3, allowed is at most 2, the rounds of the run spec" in refusal(
        open_policy(), process_spec(rounds=2)
    )


@pytest.mark.parametrize(("min_cohort", "min_clients", "least"), [(3, 8, 3), (3, 2, 2), (8, 3, 3), (1, 2, 1)])
def test_the_smallest_cohort_is_the_policys_or_the_smaller_one_that_the_partner_consented_to(
    min_cohort: int, min_clients: int, least: int
) -> None:
    spec, policy = (
        process_spec(round={"min_clients": min_clients, "target_clients": 8}),
        open_policy(min_cohort=min_cohort),
    )
    check(policy, spec, cohort_size=least)
    check_updates_behind(policy, spec, 1, least)
    check_updates_behind(policy, spec, 0, 0)  # nobody trained version 0
    assert f"min_cohort is {least - 1}, allowed is at least {least}" in refusal(policy, spec, cohort_size=least - 1)
    with pytest.raises(
        PolicyForbids, match=f"min_cohort is {least - 1} updates behind model version 7, allowed is at least"
    ):
        check_updates_behind(policy, spec, 7, least - 1)


def test_updates_that_the_rule_leaves_out_are_not_behind_a_version() -> None:
    aggregation = {"rule": "multi_krum", "assumed_attackers": 2, "weighting": "uniform"}
    sizes = {"min_clients": 7, "target_clients": 8}
    spec = process_spec(format="pluralllm.run/2", round=sizes, aggregation=aggregation)
    policy = open_policy(min_cohort=7)
    check_updates_behind(policy, spec, 1, 5)
    with pytest.raises(PolicyForbids, match="min_cohort is 4 updates behind model version 1, allowed is at least 5"):
        check_updates_behind(policy, spec, 1, 4)


def test_the_questions_of_a_step_are_those_of_all_its_episodes() -> None:
    spec = process_spec(training={"batch_episodes": 3})
    check(open_policy(max_questions_of_step=120), spec)
    assert "max_questions_of_step is 120" in refusal(open_policy(max_questions_of_step=119), spec)


@pytest.mark.parametrize("kind", [TaskKind.TRAIN, TaskKind.EVALUATE])
def test_a_model_above_the_allowed_size_is_refused_for_every_kind_of_task(kind: TaskKind) -> None:
    spec = process_spec(predictor={"d_model": 512, "feedforward": 512})
    size_mib = layout_for(spec).size_bytes / MIB
    check(open_policy(max_model_mib=int(size_mib) + 1), spec, kind)
    text = refusal(open_policy(max_model_mib=int(size_mib)), spec, kind)
    assert f"max_model_mib is {size_mib:.1f}, allowed is at most {int(size_mib)}" in text


@pytest.mark.parametrize(
    "model",
    [
        "/etc",
        "./models/mine",
        "../models/mine",
        "models/../../mine",
        "sentence-transformers/..",
        "sentence-transformers/../../home/mine",
        "sentence-transformers/a/b",
        "~/models",
        "C:\\models",
        "file:///etc",
        "sentence-transformers/a b",
        "sentence-transformers/a\nb",
        ".",
        "a" * 97,
    ],
)
def test_a_run_spec_never_names_a_path(model: str) -> None:
    spec = process_spec(embedding={"model": model, "dimension": 32})
    text = refusal(open_policy(allowed_embedding_models=["*"]), spec)
    assert text.startswith("This partner's policy forbids it: allowed_embedding_models is ")
    assert "never a path" in text


@pytest.mark.parametrize(
    "model", ["tiny", "sentence-transformers/all-MiniLM-L6-v2", "BAAI/bge-small-en-v1.5", "a" * 96]
)
def test_a_model_id_is_no_path(model: str) -> None:
    check(open_policy(allowed_embedding_models=["*"]), process_spec(embedding={"model": model, "dimension": 32}))


@pytest.mark.parametrize("revision", ["../../main", "a/../b", "/main", "", "re\nvision", "a/b/c/d/e/f"])
def test_a_revision_never_names_a_path(revision: str) -> None:
    spec = process_spec()
    spec = spec.model_copy(update={"embedding": spec.embedding.model_copy(update={"revision": revision})})
    assert "revision" in refusal(open_policy(), spec)


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/7", "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"])
def test_a_branch_a_tag_and_a_commit_are_revisions(revision: str) -> None:
    check(open_policy(), process_spec(embedding={"model": "tiny", "dimension": 32, "revision": revision}))


def test_the_default_policy_allows_the_embedding_model_that_a_new_spec_names() -> None:
    model = "sentence-transformers/all-MiniLM-L6-v2"
    check(Policy(), process_spec(embedding={"model": model, "dimension": 768}))
    assert "allowed_embedding_models is tiny@main" in refusal(Policy())


@pytest.mark.parametrize("revision", ["refs/pr/7", "c9745ed1d9f207416be6d2e6f8de32d1f16199bf", "main2", "v1.0"])
def test_the_default_policy_allows_no_revision_that_a_stranger_may_have_proposed(revision: str) -> None:
    model = {"model": "sentence-transformers/all-MiniLM-L6-v2", "dimension": 768}
    spec = process_spec(embedding={**model, "revision": revision})
    assert f"all-MiniLM-L6-v2@{revision}, allowed is" in refusal(Policy(), spec)
    for pattern in ("sentence-transformers/*", f"sentence-transformers/*@{revision}", "*"):
        check(Policy(allowed_embedding_models=(pattern,), min_cohort=1), spec)
    refusal(Policy(allowed_embedding_models=("sentence-transformers/*@another", "other/*")), spec)


@pytest.mark.parametrize("policy", [open_policy(allow_evaluation=False), open_policy(allowed_metrics=["loss"])])
def test_evaluation_can_be_forbidden(policy: Policy) -> None:
    refusal(policy, kind=TaskKind.EVALUATE)
    check(open_policy(), kind=TaskKind.EVALUATE, cohort_size=1)


def test_a_held_out_group_never_trains_whatever_is_asked() -> None:
    assert "this group is evaluated only" in refusal(open_policy(), role=GroupRole.HELD_OUT)
    check(open_policy(), kind=TaskKind.EVALUATE, role=GroupRole.HELD_OUT)


def test_a_group_that_the_run_holds_out_does_not_train_in_it() -> None:
    spec = process_spec(groups={"train": ["H", "I"], "held_out": [GROUP]})
    assert "this group is evaluated only" in refusal(open_policy(), spec)
    check(open_policy(), spec, TaskKind.EVALUATE)


@pytest.mark.parametrize("kind", [TaskKind.TRAIN, TaskKind.EVALUATE])
def test_a_group_that_the_run_does_not_name_does_nothing_for_it(kind: TaskKind) -> None:
    spec = process_spec(groups={"train": ["H", "I"], "held_out": ["J"]})
    assert "the run spec does not name this group" in refusal(open_policy(), spec, kind)


def test_rewards_need_the_policys_leave_and_a_run_that_asks_for_them() -> None:
    spec = process_spec(rewards=REWARDS)
    named: dict[str, Any] = {"base_version": 0, "base_digest": "a" * 64}
    check(open_policy(allow_rewards=True), spec, TaskKind.REWARD, **named)
    for other in ({"base_version": 1}, {"base_digest": "b" * 64}):
        text = refusal(open_policy(allow_rewards=True), spec, TaskKind.REWARD, **{**named, **other})
        assert "only by version 0, aaaaaaaaaaaa, which the run spec names" in text
    assert "allow_rewards is asked for, allowed is false" in refusal(open_policy(), spec, TaskKind.REWARD)
    allowed = open_policy(allow_rewards=True)
    assert "only in a run whose spec asks for rewards" in refusal(allowed, SPEC, TaskKind.REWARD)


SUMS = process_spec(
    predictor={"architecture": "kernel-sums/1", "features": 64, "group_rank": 2}, aggregation={"weighting": "uniform"}
)


PRIVATE_SUMS = RunSpec.model_validate(
    {
        **SUMS.model_dump(mode="json"),
        "round": {"min_clients": 4, "target_clients": 5},
        "aggregation": {"weighting": "uniform", "max_examples": 1024},
        "private_rounds": {},
    }
)


@pytest.mark.parametrize("spec", [SUMS, PRIVATE_SUMS], ids=["plain", "private"])
@pytest.mark.parametrize("kind", [TaskKind.TRAIN, TaskKind.EVALUATE])
def test_a_group_trains_in_a_run_of_sums_only_if_the_policy_says_so_in_its_own_key(
    kind: TaskKind, spec: RunSpec
) -> None:
    text = refusal(open_policy(allow_sums=False), spec, kind)
    expected_text = (
        "allow_sums is by kernel-sums/1, allowed is false: a coordinator can compute this group's answers from its sums"
    )
    assert expected_text in text
    check(open_policy(allow_sums=True), spec, kind)
    check(open_policy(allow_sums=False), SPEC, kind)


def test_a_group_that_is_evaluated_only_sends_no_sums() -> None:
    check(open_policy(allow_sums=False), SUMS, TaskKind.EVALUATE, role=GroupRole.HELD_OUT)
    held_out = SUMS.model_copy(update={"groups": Groups(train=("a", "b"), held_out=(GROUP,))})
    check(open_policy(allow_sums=False), held_out, TaskKind.EVALUATE)


@pytest.mark.parametrize("kind", [TaskKind.TRAIN, TaskKind.EVALUATE])
def test_a_run_that_asks_for_rewards_gets_nothing_else(kind: TaskKind) -> None:
    text = refusal(open_policy(allow_rewards=True), process_spec(rewards=REWARDS), kind)
    assert "only rewards in such a run" in text


def test_a_model_version_after_more_rounds_than_allowed_is_refused_whatever_the_task() -> None:
    check(open_policy(max_rounds=7), kind=TaskKind.EVALUATE, base_version=7)
    text = refusal(open_policy(max_rounds=6), kind=TaskKind.EVALUATE, base_version=7)
    assert "max_rounds is 7, allowed is at most 6" in text


class Sized:
    """The layout of a model, of which only the size counts."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes


@pytest.mark.parametrize("mebibytes", [1, 3])
def test_a_model_of_exactly_the_largest_size_is_allowed(monkeypatch: pytest.MonkeyPatch, mebibytes: int) -> None:
    policy, limit = open_policy(max_model_mib=mebibytes), mebibytes * 1024 * 1024
    monkeypatch.setattr("pluralllm.client.disclosure.limits.layout_for", lambda spec: Sized(limit))
    check(policy)
    monkeypatch.setattr("pluralllm.client.disclosure.limits.layout_for", lambda spec: Sized(limit + 1))
    assert f"max_model_mib is {mebibytes}.0, allowed is at most {mebibytes}" in refusal(policy)


@pytest.mark.parametrize("name", ["a..b", "owner/a..b", "owner/a.."])
def test_two_dots_are_allowed_in_no_model_and_no_revision(name: str) -> None:
    policy = open_policy(allowed_embedding_models=["*", "*@*"])
    assert "never a path" in refusal(policy, process_spec(embedding={"model": name}))
    assert "branch or tag" in refusal(policy, process_spec(embedding={"revision": name}))


def test_a_refusal_says_none_where_nothing_is_allowed() -> None:
    assert "allowed is none" in refusal(open_policy(allowed_embedding_models=[]))
    scored = TaskKind.EVALUATE
    assert "allowed is none" in refusal(open_policy(allowed_metrics=frozenset()), kind=scored)
    kept = frozenset({"loss", "base_distance"})
    assert "allowed is base_distance, loss" in refusal(open_policy(allowed_metrics=kept), kind=scored)


def test_the_first_version_is_made_from_no_updates_and_every_other_one_from_enough() -> None:
    policy = Policy(min_cohort=2)
    check_updates_behind(policy, SPEC, version=0, updates=0)
    for version in (1, 2):
        check_updates_behind(policy, SPEC, version, updates=2)
        with pytest.raises(PolicyForbids, match=f"1 updates behind model version {version}"):
            check_updates_behind(policy, SPEC, version, updates=1)


PRIVATE = {"private_rounds": {"colluders": 1}, "aggregation": {"max_examples": 1_024}}


def rounds_policy(**table: Any) -> Policy:
    return open_policy(private_rounds=table)


def private_spec(clients: int, **table: Any) -> RunSpec:
    """Returns the spec of a run with private rounds, of which no client may drop out."""
    rounds = {"min_clients": clients, "target_clients": clients}
    return process_spec(**PRIVATE | {"private_rounds": {"colluders": 1, **table}}, round=rounds)


def test_plain_rounds_are_refused_where_private_ones_are_required_but_only_for_training() -> None:
    plain = process_spec(round={"min_clients": 3, "target_clients": 4})
    text = refusal(rounds_policy(rounds="required"), plain)
    assert "[private_rounds] rounds is plain rounds, in which the coordinator reads each update" in text
    assert "allowed is private rounds: a run spec with the table [private_rounds]; for plain ones" in text
    assert 'rounds must be "allowed"' in text
    check(rounds_policy(rounds="allowed"), plain)
    check(rounds_policy(rounds="required"), plain, TaskKind.EVALUATE)
    check(
        rounds_policy(rounds="required"), process_spec(round={"min_clients": 3, "target_clients": 3})
    )  # asks for consent
    check(rounds_policy(rounds="required"), private_spec(4))


@pytest.mark.parametrize("rounds", ["required", "allowed"])
def test_a_private_run_that_expects_fewer_colluders_than_the_partner_is_refused(rounds: str) -> None:
    check(rounds_policy(rounds=rounds, colluders=1), private_spec(5, colluders=1))
    text = refusal(rounds_policy(rounds=rounds, colluders=2), private_spec(5, colluders=1))
    assert "[private_rounds] colluders is 1 in the run spec, allowed is at least 2" in text
    assert "colluders is 0" in refusal(rounds_policy(rounds=rounds), private_spec(5, colluders=0))


def test_a_private_run_too_small_to_hide_an_update_is_refused() -> None:
    check(rounds_policy(colluders=1, hidden_among=3), private_spec(4))
    text = refusal(rounds_policy(colluders=1, hidden_among=3), private_spec(3))
    assert "hidden_among is at most 2 of 3 clients, 1 of whom may collude, allowed is at least 3" in text
    check(rounds_policy(colluders=1, hidden_among=2), private_spec(3))


def embedding(version: str = "1.0") -> RunSpec:
    """Returns the spec of a run whose vectors another package makes."""
    spec = process_spec()
    made = {"plugin": plugin(VECTORS, version), "dimension": 64}
    return spec.model_copy(update={"embedding": Embedding.model_validate(made)})


def test_no_other_packages_code_makes_vectors_here_unless_the_policy_names_the_package() -> None:
    for policy in (Policy(), open_policy()):  # whatever embedding models it allows
        text = refusal(policy, embedding())
        assert "allowed_embedders is letter-counts of town-hall-methods==1.0, allowed is none" in text
        assert 'this line would allow its code here: allowed_embedders = ["town-hall-methods==1.0"]' in text
    for allowed in ([METHODS], [f"{METHODS}==1.0"]):
        check(open_policy(allowed_embedders=allowed, allowed_embedding_models=[]), embedding())
    other = refusal(open_policy(allowed_embedders=["other", f"{METHODS}==1.0"]), embedding("1.1"))
    assert "allowed is other, town-hall-methods==1.0; this line" in other
    assert 'allowed_embedders = ["other", "town-hall-methods==1.0", "town-hall-methods==1.1"]' in other


def test_the_line_of_a_refusal_allows_the_embedder(tmp_path: Path) -> None:
    line = refusal(Policy(), embedding()).partition("code here: ")[2].partition("]")[0] + "]\n"
    (tmp_path / "policy.toml").write_text(f"{line}min_cohort = 1\n")
    check(load_policy(tmp_path / "policy.toml"), embedding())


def test_only_the_work_of_a_round_after_the_last_one_is_the_closing_rounds() -> None:
    private = {"colluders": 1, "closing_scores": True}
    spec = SPEC.model_copy(update={"format": "pluralllm.run/4", "private_rounds": PrivateRounds(**private)})
    assert spec.closes
    assert not is_closing(spec, task_of(spec, round_number=spec.rounds))
    assert is_closing(spec, task_of(spec, round_number=spec.rounds + 1))
    assert not is_closing(spec, task_of(spec, TaskKind.EVALUATE, round_number=spec.rounds + 1))
