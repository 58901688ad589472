"""The content of the web page, from records."""

import dataclasses

import pytest
from support.coordinator_harness import small_spec
from support.run_states import with_state

from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.words.ids import ClientId, Digest, GroupName, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.names import ModelName
from pluralllm.common.words.noise import NoiseStatement
from pluralllm.common.words.not_reported import NotReported
from pluralllm.common.words.private_rounds import PrivateRounds
from pluralllm.common.words.reward_weights import RewardOptions
from pluralllm.common.words.run_state import READS_SINGLE, READS_SUMS
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.observe.page_facts import (
    LEAST_POINTS,
    Facts,
    History,
    history_facts,
    people_text,
    reads_text,
    run_now,
    run_row,
)
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Outcome, Phase
from pluralllm.server.runs.live_run import LiveRun, Progress, first_state
from pluralllm.server.runs.overview import Participant, ParticipantState
from pluralllm.server.runs.round_sums import NewestSums
from pluralllm.server.runs.status import RunStatus
from pluralllm.server.storage.store import EvaluationRecord, RoundOutcome, RoundRecord, RunRecord

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


def person(name: str, state: ParticipantState, noise: NoiseStatement | None = None) -> Participant:
    return Participant(ClientId(name), "g", GroupRole.TRAIN, state, "", "", 1.0, 0.0, "", None, noise)


def test_the_sentence_about_what_the_coordinator_reads_counts_the_clients_whose_answers_have_noise() -> None:
    noise = NoiseStatement(noised=True, epsilon=4.0, delta=1e-6, unit="respondent")
    people = [
        person("ann", ParticipantState.IDLE, noise),
        person("ben", ParticipantState.IDLE, NoiseStatement(noised=False)),
    ]
    assert reads_text(evaluated_run(0), people) == (
        f"{READS_SINGLE}; 1 of 2 clients declare that their answers have noise, which nobody else can check"
    )
    assert reads_text(evaluated_run(0), people[1:]) == READS_SINGLE


def test_the_clients_are_counted_by_state_and_one_that_is_not_connected_is_away() -> None:
    people = [
        person(str(number), state)
        for number, state in enumerate((ParticipantState.AWAY, ParticipantState.DONE, ParticipantState.AWAY))
    ]
    assert people_text(people) == "1 done, 2 away"


def test_a_run_is_in_one_state_whether_it_runs_is_paused_or_has_ended() -> None:
    run = evaluated_run(0)
    ended = with_state(run, phase=Phase.ENDED, outcome=Outcome.CANCELLED)
    assert [run_row(one)["state"] for one in (run, with_state(run, paused=True), ended)] == [
        "created",
        "created (paused)",
        "cancelled",
    ]


def test_training_and_held_out_groups_have_means_of_their_own_beside_the_one_without_their_answers() -> None:
    records = [evaluation("ann", 0, 0.5, gain=0.1), evaluation("ben", 0, 0.7, gain=0.2), evaluation("cem", 0, 0.9)]
    unseen = dataclasses.replace(records[2], score=dataclasses.replace(records[2].score, role=GroupRole.HELD_OUT))
    facts = facts_of(0, *records[:2], unseen)
    assert facts["means"] == {"train": [0.6], "held_out": [0.9]}
    assert facts["without_context"] == [0.45]  # of the two groups that report a context gain
    assert [group["gain"] for group in facts["groups"]] == [0.1, 0.2, None]
    assert facts["gains"] == [0.15]


def test_the_curves_of_a_thousand_groups_have_fewer_points_each() -> None:
    scores = {version: {f"g{number}": 0.5 for number in range(1000)} for version in range(201)}
    long = History(scores, {f"g{number}": "train" for number in range(1000)})
    facts = history_facts(evaluated_run(200), long, (), (), NewestSums())
    assert (len(facts["versions"]), facts["versions"][0], facts["versions"][-1]) == (LEAST_POINTS, 0, 200)


def a_round(number: int, begun_s: float) -> RoundRecord:
    version = ModelVersion(number)
    return RoundRecord(R, RoundNumber(number), RoundOutcome.CLOSED, "", version, version, (), begun_s, begun_s + 5)


def test_the_pace_is_the_mean_time_from_one_round_to_the_next() -> None:
    rounds = [a_round(3, 170.0), a_round(2, 100.0), a_round(1, 50.0)]
    assert history_facts(evaluated_run(0), History(), rounds, (), NewestSums())["pace_s"] == 60.0
    assert history_facts(evaluated_run(0), History(), rounds[:1], (), NewestSums())["pace_s"] is None


def test_the_mean_context_gain_of_the_newest_version_is_a_text_and_a_small_one_is_named() -> None:
    def facts(*gains: float | None) -> str:
        rows = [evaluation("ann", 0, 0.5, gain=0.5)]
        rows += [evaluation(f"c{number}", 1, 0.5, gain=gain) for number, gain in enumerate(gains)]
        return str(facts_of(1, *rows)["context_gain"])

    assert facts(0.02, 0.03, None) == "+0.0250"
    assert facts(0.01, 0.0) == "+0.0050"
    assert facts(0.0, 0.0) == "+0.0000: these predictions do not depend on the group"
    assert facts(None) == "not known, so the predictions may be the same for every group"
    assert facts_of(-1)["context_gain"] == "", "nothing is evaluated"


def test_a_version_that_no_group_reports_on_has_no_fairness_and_stays_in_the_curves() -> None:
    facts = facts_of(0, evaluation("ann", 0, NotReported.TOO_FEW_QUESTIONS))
    assert facts["context_gain"] == "", "no score is shown that needs the gain beside it"
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
