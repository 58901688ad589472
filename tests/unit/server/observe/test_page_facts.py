"""The content of the web page, from records."""

import dataclasses

import pytest
from support.coordinator_harness import small_spec

from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.words.ids import ClientId, Digest, GroupName, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.names import ModelName
from pluralllm.common.words.noise import NoiseStatement
from pluralllm.common.words.not_reported import NotReported
from pluralllm.common.words.private_rounds import READS_SINGLE, READS_SUMS, PrivateRounds
from pluralllm.common.words.reward_weights import RewardOptions
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.observe.page_facts import Facts, History, history_facts, run_now
from pluralllm.server.rounds import events as ev
from pluralllm.server.runs.live_run import LiveRun, Progress, first_state
from pluralllm.server.runs.overview import Participant, ParticipantState
from pluralllm.server.runs.round_sums import NewestSums
from pluralllm.server.runs.status import RunStatus
from pluralllm.server.storage.store import EvaluationRecord, RunRecord

R = RunId("r")


def evaluated_run(version: int) -> LiveRun:
    """Returns a run whose newest evaluated version is `version`."""
    spec = small_spec()
    record = RunRecord(R, spec.canonical_json(), spec.sha256(), 0.0)
    first = VersionRecord(R, ModelVersion(0), RoundNumber(0), Digest("d"), spec.sha256(), "", (), created_s=0.0)
    state = dataclasses.replace(first_state(record, spec, first), evaluated=ModelVersion(version))
    return LiveRun(record, spec, layout_for(spec), first, Progress(state, first))


def evaluation(
    client: str, version: int, value: float | NotReported, group: str = "", gain: float | None = None
) -> EvaluationRecord:
    reason = value if isinstance(value, NotReported) else None
    number = None if isinstance(value, NotReported) else value
    name, questions = GroupName(group or client), 0 if number is None else 40
    score = ev.Score(
        ClientId(client), name, GroupRole.TRAIN, ModelVersion(version), number, number, None, questions, reason, gain
    )
    return EvaluationRecord(R, score, 0.0)


def facts_of(version: int, *records: EvaluationRecord) -> Facts:
    history = History()
    history.add_scores(list(enumerate(records, 1)))
    return history_facts(evaluated_run(version), history, (), (), NewestSums())


def test_a_group_that_keeps_its_score_is_on_the_page_with_the_reason_and_has_no_point() -> None:
    facts = facts_of(
        1,
        evaluation("ann", 0, 0.5),
        evaluation("ben", 0, 0.7),
        evaluation("ann", 1, 0.8),
        evaluation("ben", 1, NotReported.BUDGET_SPENT),
        evaluation("cem", 1, NotReported.TOO_FEW_QUESTIONS),
    )
    assert [(group["group"], group["scores"], group["not_reported"]) for group in facts["groups"]] == [
        ("ann", [0.5, 0.8], ""),
        ("ben", [0.7, None], "not reported: budget spent"),
        ("cem", [None, None], "not reported: too few questions"),
    ]
    assert facts["versions"] == [0, 1]
    assert facts["fairness"] == [pytest.approx(0.973, abs=1e-4), 1.0]


def test_the_page_shows_what_each_member_declares_about_noise() -> None:
    noise = NoiseStatement(noised=True, epsilon=4.0, delta=1e-6, unit="respondent")
    people = tuple(
        Participant(ClientId(name), "g", GroupRole.TRAIN, ParticipantState.IDLE, "", "", 1.0, 0.0, "", None, statement)
        for name, statement in (("ann", noise), ("ben", NoiseStatement(noised=False)), ("cem", None))
    )
    status = RunStatus(at_s=1.0, participants=people, next="", trouble="", received_bytes=0, sent_bytes=0)
    assert [row["noise"] for row in run_now(evaluated_run(0), status)["clients"]] == [
        "epsilon 4, delta 1e-06, unit respondent",
        "not noised",
        "not stated",
    ]


def test_the_page_says_what_the_coordinator_reads() -> None:
    status = RunStatus(at_s=1.0, participants=(), next="", trouble="", received_bytes=0, sent_bytes=0)
    plain = evaluated_run(0)
    private = plain.spec.model_copy(update={"private_rounds": PrivateRounds()})
    rewards = plain.spec.for_rewards(ModelName(R, ModelVersion(0)), Digest("a1" * 32), RewardOptions(), "here")
    runs = (dataclasses.replace(plain, spec=spec) for spec in (plain.spec, private, rewards))
    assert [run_now(run, status)["reads"] for run in runs] == [READS_SINGLE, READS_SUMS, ""]


def test_the_mean_context_gain_of_the_newest_version_is_a_text_and_a_small_one_is_named() -> None:
    def facts(*gains: float | None) -> str:
        rows = [evaluation("ann", 0, 0.5, gain=0.5)]
        rows += [evaluation(f"c{number}", 1, 0.5, gain=gain) for number, gain in enumerate(gains)]
        return str(facts_of(1, *rows)["context_gain"])

    assert facts(0.02, 0.03, None) == "+0.0250"
    assert facts(0.01, 0.0) == "+0.0050"
    assert facts(0.0, 0.0) == "+0.0000: these predictions do not depend on the group"
    assert facts(None) == ""


def test_a_version_that_no_group_reports_on_has_no_fairness_and_stays_in_the_curves() -> None:
    facts = facts_of(0, evaluation("ann", 0, NotReported.TOO_FEW_QUESTIONS))
    assert (facts["versions"], facts["fairness"]) == ([0], [None])


def test_the_reason_is_the_one_for_the_newest_evaluated_version() -> None:
    records = (evaluation("ann", 0, NotReported.TOO_FEW_QUESTIONS), evaluation("ann", 1, 0.5))
    assert facts_of(0, *records)["groups"][0]["not_reported"] == "not reported: too few questions"
    assert facts_of(1, *records)["groups"][0]["not_reported"] == ""


@pytest.mark.parametrize("first_reports", [True, False])
def test_a_group_of_two_clients_has_the_score_of_the_one_that_reports(first_reports: bool) -> None:
    values: list[float | NotReported] = (
        [0.5, NotReported.BUDGET_SPENT] if first_reports else [NotReported.BUDGET_SPENT, 0.5]
    )
    records = [evaluation(client, 0, value, "both") for client, value in zip(("ann", "ben"), values, strict=True)]
    (group,) = facts_of(0, *records)["groups"]
    assert (group["scores"], group["not_reported"]) == ([0.5], "")
