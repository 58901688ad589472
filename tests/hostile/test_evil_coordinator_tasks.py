"""A coordinator asks for work that would hand over the private answers: the daemon refuses before it computes anything."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hostile.evil_tasks import EvilCoordinator, Victim
from structlog.testing import capture_logs

from pluralllm.client.disclosure.consents import Consents
from pluralllm.client.disclosure.differences import differences_of
from pluralllm.client.disclosure.limits import check_task
from pluralllm.client.disclosure.policy import Policy
from pluralllm.client.link.tasks import RunOver
from pluralllm.common.words.ids import Digest, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.names import TaskKind
from pluralllm.common.words.spec import GroupRole, RunSpec, merge, preset_values

MODEL = {"model": "sentence-transformers/all-MiniLM-L6-v2", "dimension": 768}
REWARDS = {"source": "runs/r/models/3", "model_digest": "a" * 64}
# One step of gradient descent over all questions with one context question, and no noise from dropout: each row of the delta is
# a linear equation about the answers. It was measured to give 220 of 221 answers of a group.
ONE_STEP = {
    "training": {
        "optimizer": "sgd",
        "learning_rate": 1.0,
        "schedule": "constant",
        "local_steps": 1,
        "batch_episodes": 1,
        "loss": "cross_entropy",
        "sharpness_spread": 0.0,
        "target_temperature": 1.0,
        "episodes": {"min_context": 1, "max_context": 1, "min_targets": 1_000, "max_targets": 1_000},
    },
    "predictor": {"d_model": 4096, "feedforward": 64, "dropout": 0.0, "share_scale": 1e-30},
}


def spec_of(**changes: Any) -> RunSpec:
    """Returns the spec of an ordinary run of the preset attention, with the changes that the coordinator makes to it."""
    ordinary = {"embedding": MODEL, "round": {"min_clients": 4, "target_clients": 5}}
    return RunSpec.model_validate(merge(merge(preset_values("attention"), ordinary), changes))


def consent(state: Path) -> None:
    """Consents to the run r, as the command `pluralllm-client consent` does."""
    consents = Consents(state)
    question = consents.question(RunId("r"))
    assert question is not None
    consents.give(question)


async def test_one_adversarial_training_task_is_refused_for_want_of_consent(tmp_path: Path) -> None:
    coordinator = EvilCoordinator(spec_of(**ONE_STEP))
    async with Victim(tmp_path / "state", Policy(), coordinator) as victim:
        reason, message, permanent = await victim.refusal()
    assert (reason, permanent) == ("CONSENT_NEEDED", True)
    assert "predictor.d_model is 4096, allowed is 256 (allowed_presets: attention)" in message
    assert message.endswith("The partner can consent: pluralllm-client consent r.")
    assert len(message) <= 400, "the coordinator keeps the beginning only"
    assert victim.worker.orders == []
    assert coordinator.calls == ["Hello", "GetRunSpec", "ReportFailure"], "nothing is downloaded, nothing is sent"
    asked = json.loads((tmp_path / "state" / "disclosure" / "asked" / "r.json").read_bytes())
    assert "predictor.share_scale" in [difference["field"] for difference in asked["differences"]]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"predictor": {"share_scale": 1e-30}}, TaskKind.TRAIN),
        ({"predictor": {"dropout": 0.0}}, TaskKind.TRAIN),
        ({"training": {"local_steps": 1}}, TaskKind.TRAIN),
        ({"training": {"optimizer": "sgd"}}, TaskKind.TRAIN),
        ({"training": {"learning_rate": 0.9}}, TaskKind.TRAIN),
        ({"training": {"gradient_clip_norm": 1e-12}}, TaskKind.TRAIN),
        ({"training": {"proximal_mu": 1e12}}, TaskKind.TRAIN),
        ({"training": {"target_temperature": 0.1}}, TaskKind.TRAIN),
        ({"training": {"loss": "cross_entropy"}}, TaskKind.TRAIN),
        ({"training": {"episodes": {"max_targets": 1_900}}}, TaskKind.TRAIN),
        ({"training": {"episodes": {"min_targets": 1, "max_targets": 1}}}, TaskKind.TRAIN),
        ({"training": {"episodes": {"min_context": 1, "max_context": 1}}}, TaskKind.TRAIN),
        ({"embedding": {"templates": ["{letter}", "{option}"]}}, TaskKind.TRAIN),
        ({"embedding": {"templates": ["{question}", "{question}"]}}, TaskKind.EVALUATE),
        ({"embedding": {"max_tokens": 8}}, TaskKind.EVALUATE),
        ({"embedding": {"normalize": False}, "predictor": {"input_scale": "none"}}, TaskKind.EVALUATE),
        ({"evaluation": {"context_questions": 1}}, TaskKind.EVALUATE),
        ({"evaluation": {"draws": 1}}, TaskKind.EVALUATE),
        ({"predictor": {"share_scale": 1e-30}}, TaskKind.EVALUATE),
        ({"round": {"min_clients": 1}}, TaskKind.TRAIN),
        ({"round": {"min_clients": 2}}, TaskKind.TRAIN),
        ({"round": {"min_clients": 2}}, TaskKind.EVALUATE),
        ({"rewards": REWARDS}, TaskKind.REWARD),
    ],
)
async def test_each_setting_that_shows_more_waits_for_consent(
    tmp_path: Path, changes: dict[str, Any], kind: TaskKind
) -> None:
    model: dict[str, Any] = {"base_version": 0, "base_digest": "a" * 64} if kind is TaskKind.REWARD else {}
    coordinator = EvilCoordinator(spec_of(**changes), kind, **model)
    async with Victim(tmp_path / "state", Policy(allow_rewards=True), coordinator) as victim:
        reason, message, permanent = await victim.refusal()
    assert (reason, permanent) == ("CONSENT_NEEDED", True)
    assert "pluralllm-client consent r" in message
    assert victim.worker.orders == []
    assert not {"ListVersionRecords", "GetManifest"} & set(coordinator.calls)


async def test_an_ordinary_task_is_done_without_a_question(tmp_path: Path) -> None:
    coordinator = EvilCoordinator(spec_of())
    async with Victim(tmp_path / "state", Policy(), coordinator):
        await coordinator.until_called("ListVersionRecords")
    assert not (tmp_path / "state" / "disclosure" / "asked").exists()


async def test_a_hash_that_was_consented_to_does_not_cover_the_next_spec_under_the_same_name(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with Victim(state, Policy(), EvilCoordinator(spec_of(training={"local_steps": 7}))) as victim:
        await victim.refusal()
    consent(state)
    async with Victim(state, Policy(), EvilCoordinator(spec_of(**ONE_STEP))) as victim:
        assert (await victim.refusal())[0] == "CONSENT_NEEDED"


async def test_after_the_consent_the_running_daemon_says_hello_again_and_takes_part(tmp_path: Path) -> None:
    state, coordinator = tmp_path / "state", EvilCoordinator(spec_of(training={"local_steps": 7}))
    async with Victim(state, Policy(), coordinator) as victim:
        await victim.refusal()
        consent(state)
        await coordinator.until_called("Hello", 2)
        await coordinator.until_called("ListVersionRecords")
        assert len(coordinator.refusals) == 1
    async with Victim(state, Policy(), again := EvilCoordinator(spec_of(training={"local_steps": 7}))):
        await again.until_called("ListVersionRecords")


async def test_a_consent_that_is_withdrawn_counts_from_the_next_task_on(tmp_path: Path) -> None:
    state, spec = tmp_path / "state", spec_of(training={"local_steps": 7})
    async with Victim(state, Policy(), EvilCoordinator(spec)) as victim:
        await victim.refusal()
    consent(state)
    assert Consents(state).withdraw(RunId("r")) == 1
    async with Victim(state, Policy(), EvilCoordinator(spec)) as victim:
        assert (await victim.refusal())[0] == "CONSENT_NEEDED"


async def test_a_coordinator_that_repeats_a_refused_task_is_refused_each_time_and_asks_the_owner_once(
    tmp_path: Path,
) -> None:
    coordinator = EvilCoordinator(spec_of(**ONE_STEP), repeats=4)
    state = tmp_path / "state"
    async with Victim(state, Policy(), coordinator) as victim:
        await victim.refusal()
        asked = state / "disclosure" / "asked" / "r.json"
        written_ns = asked.stat().st_mtime_ns
        await coordinator.until_called("ReportFailure", 5)
        assert asked.stat().st_mtime_ns == written_ns
    assert {reason for reason, _, _ in coordinator.refusals} == {"CONSENT_NEEDED"}
    assert victim.worker.orders == []
    assert coordinator.calls.count("Hello") == 1


async def test_a_consent_to_small_rounds_does_not_open_smaller_ones(tmp_path: Path) -> None:
    """The partner consented to two clients in a round. A task that states a cohort of one is still refused."""
    state, spec = tmp_path / "state", spec_of(round={"min_clients": 2})
    async with Victim(state, Policy(), EvilCoordinator(spec)) as victim:
        await victim.refusal()
    consent(state)
    async with Victim(state, Policy(), EvilCoordinator(spec, cohort_size=1)) as victim:
        reason, message, _ = await victim.refusal()
    assert reason == "POLICY_FORBIDS"
    assert "min_cohort is 1, allowed is at least 2" in message
    async with Victim(state, Policy(), again := EvilCoordinator(spec, cohort_size=2)):
        await again.until_called("ListVersionRecords")


@pytest.mark.parametrize(("updates", "version"), [((4, 2), 2), ((1, 8), 1), ((2,), 1)])
async def test_a_coordinator_that_publishes_models_of_fewer_updates_than_promised_gets_no_further_update(
    tmp_path: Path, updates: tuple[int, ...], version: int
) -> None:
    coordinator = EvilCoordinator(spec_of(), updates=updates)
    async with Victim(tmp_path / "state", Policy(), coordinator) as victim:
        reason, message, permanent = await victim.refusal()
    assert (reason, permanent) == ("POLICY_FORBIDS", True)
    assert (
        f"min_cohort is {updates[version - 1]} updates behind model version {version}, allowed is at least 3" in message
    )
    assert victim.worker.orders == []


async def test_a_run_that_broke_its_promise_is_left_for_good(tmp_path: Path) -> None:
    """The next version has enough updates. The client remembers, over a restart, and does not even ask for the version."""
    state = tmp_path / "state"
    async with Victim(state, Policy(), EvilCoordinator(spec_of(), updates=(1,))) as victim:
        await victim.refusal()
    async with Victim(state, Policy(), again := EvilCoordinator(spec_of(), updates=(1, 8))) as victim:
        assert "1 updates behind model version 1" in (await victim.refusal())[1]
    assert again.calls == ["Hello", "GetRunSpec", "ReportFailure"]


async def test_a_model_of_too_few_updates_is_not_evaluated(tmp_path: Path) -> None:
    coordinator = EvilCoordinator(spec_of(), TaskKind.EVALUATE, updates=(3, 1))
    async with Victim(tmp_path / "state", Policy(), coordinator) as victim:
        assert "1 updates behind model version 2" in (await victim.refusal())[1]
    assert victim.worker.orders == []


@pytest.mark.parametrize(("updates", "events"), [((3, 3), []), ((3, 1), ["1 updates behind"]), ((3,), ["lacks this"])])
async def test_what_a_run_hid_until_its_end_is_an_error_in_the_log(
    tmp_path: Path, updates: tuple[int, ...], events: list[str]
) -> None:
    """The client has a receipt for round 1 if the last version is 1; no task comes after its last version."""
    coordinator = EvilCoordinator(spec_of(), updates=updates)
    daemon, newest = Victim(tmp_path / "state", Policy(), coordinator).daemon, coordinator.records[-1]
    number = RoundNumber(1 if len(updates) == 1 else 9)
    first = replace(coordinator.task, round=number, base_version=ModelVersion(number - 1))
    with daemon._history.handing_in(first, Digest("a" * 64), 40):
        pass
    with capture_logs() as lines:
        await daemon.take(RunOver(RunId("r"), "completed", "", newest.version, newest.digest))
    problems = [line["problem"] for line in lines if line["event"] == "history.contradicted"]
    assert [found in problem for found, problem in zip(events, problems, strict=True)] == [True] * len(events)
    assert lines[-1]["event"] == "run.over"


async def test_the_records_of_a_run_without_a_part_of_this_client_are_not_asked_for(tmp_path: Path) -> None:
    coordinator = EvilCoordinator(spec_of(), updates=(3, 1))
    daemon = Victim(tmp_path / "state", Policy(), coordinator).daemon
    await daemon.take(RunOver(RunId("r"), "completed", "", ModelVersion(2), coordinator.records[-1].digest))
    assert coordinator.calls == []


async def test_models_of_as_many_updates_as_the_partner_allows_are_trained_on(tmp_path: Path) -> None:
    async with Victim(tmp_path / "state", Policy(), EvilCoordinator(spec_of(), updates=(3, 3))) as victim:
        await victim.coordinator.until_called("ReportFailure")
    assert len(victim.worker.orders) == 1


async def test_a_round_that_was_trained_is_not_trained_from_another_version(tmp_path: Path) -> None:
    state, coordinator = tmp_path / "state", EvilCoordinator(spec_of(), updates=(3, 3))
    async with Victim(state, Policy(), coordinator) as victim:
        earlier = replace(coordinator.task, base_version=ModelVersion(1))
        with victim.daemon._history.handing_in(earlier, Digest("d" * 64), 50):
            pass
        reason, message, _ = await victim.refusal()
    assert reason == "HISTORY_DIVERGED"
    assert "is not the version from which this client has trained round 3" in message
    assert victim.worker.orders == []


async def test_an_evaluation_that_fails_has_counted_before_it_began(tmp_path: Path) -> None:
    coordinator = EvilCoordinator(spec_of(), TaskKind.EVALUATE, updates=(3, 3), round_number=2)
    state = tmp_path / "state"
    async with Victim(state, Policy(), coordinator) as victim:
        victim.worker.passes = 1  # PREPARE
        await victim.refusal()
    (counted,) = json.loads((state / "disclosure" / "runs" / "r.json").read_bytes())["scores"].values()
    assert counted["scores"] is None
    assert len(victim.worker.orders) == 2


def test_no_preset_breaks_a_limit_of_the_default_policy() -> None:
    spec, policy = spec_of(), Policy()
    coordinator = EvilCoordinator(spec)
    check_task(policy, "G", GroupRole.TRAIN, spec, coordinator.task)
    assert differences_of(policy, spec) == ()
