"""The status of a run: the members' weights, and the reasons why they are late."""

import dataclasses
from typing import Any

import pytest
from support.coordinator_harness import small_spec
from support.counted_calls import GROWTH, calls_of
from support.run_states import with_state

from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.words.aggregation import Aggregation
from pluralllm.common.words.ids import ClientId, Digest, GroupName, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.private_rounds import PrivateRounds
from pluralllm.common.words.spec import GroupRole, RoundPolicy
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Outcome, Phase
from pluralllm.server.runs.checkpoints import Remembered
from pluralllm.server.runs.live_run import LiveRun, Progress, first_state
from pluralllm.server.runs.overview import (
    COMES_AND_GOES,
    ParticipantState,
    participants,
    states_of,
    weights_in,
    what_next,
    why_waiting,
)
from pluralllm.server.runs.sessions import Session
from pluralllm.server.storage.store import ClientRecord, RunRecord


def version(examples: dict[str, int], weights: tuple[float, ...] = ()) -> VersionRecord:
    updates = tuple((ClientId(name), Digest("u"), number) for name, number in examples.items())
    return VersionRecord(
        *(RunId("r"), ModelVersion(1), RoundNumber(1), Digest("d"), Digest("s"), "p", updates, 0.0), weights=weights
    )


def test_a_member_that_claims_nearly_all_examples_is_shown_with_nearly_all_of_the_model() -> None:
    claims = dict.fromkeys("abcdefg", 200) | {"h": 100_000}
    weights = weights_in(version(claims), Aggregation())
    assert weights[ClientId("h")] == pytest.approx(100_000 / 101_400)
    assert sum(weights.values()) == pytest.approx(1)


def test_the_cap_of_the_run_spec_is_in_the_weights() -> None:
    weights = weights_in(version({"a": 100, "b": 100_000}), Aggregation(max_examples=300))
    assert weights == {"a": 0.25, "b": 0.75}


def test_with_uniform_weighting_the_weights_are_even() -> None:
    weights = weights_in(version({"a": 1, "b": 99}), Aggregation(weighting="uniform"))
    assert weights == {"a": 0.5, "b": 0.5}


def test_weights_on_record_are_shown_as_shares() -> None:
    weights = weights_in(version({"a": 10, "b": 10}, weights=(0.2, 0.6)), Aggregation())
    assert weights == pytest.approx({"a": 0.25, "b": 0.75})


def test_an_update_that_the_rule_left_out_has_no_part_in_the_version() -> None:
    rule = Aggregation(rule="multi_krum", weighting="uniform")
    assert weights_in(version({"a": 10, "b": 10, "c": 10}, weights=(1.0, 0.0, 1.0)), rule) == {
        "a": 0.5,
        "b": 0.0,
        "c": 0.5,
    }


def test_version_0_has_no_weights() -> None:
    assert weights_in(version({}), Aggregation()) == {}


def test_a_version_of_a_private_round_shows_no_weights_because_nobody_knows_them() -> None:
    hidden = dataclasses.replace(version({"a": 1, "b": 1}), transcript="t" * 64)
    assert weights_in(hidden, Aggregation()) == {}


def collecting_run(examples: dict[ClientId, int] | None = None) -> LiveRun:
    """Returns a run in whose round ann has lost its slot."""
    spec = small_spec()
    record = RunRecord(RunId("r"), spec.canonical_json(), spec.sha256(), 0.0)
    first = version({})
    lost = ev.PlaceLost(1.0, ClientId("ann"), "WORKER_FAILED: its disk is full", permanent=False)
    state = dataclasses.replace(
        first_state(record, spec, first),
        phase=Phase.COLLECTING,
        cohort=(ClientId("ann"), ClientId("ben")),
        away=(ClientId("ann"),),
        losses=(lost,),
    )
    return LiveRun(record, spec, layout_for(spec), first, Progress(state, first), Remembered(examples or {}))


def test_a_look_at_twice_as_many_clients_costs_twice_as_many_calls() -> None:
    def cost(number: int) -> int:
        names = tuple(ClientId(f"client-{position:03}") for position in range(number))
        run = collecting_run()
        lost = tuple(ev.PlaceLost(1.0, name, "silent", permanent=False) for name in names[::4])
        receipts = tuple(ev.Receipt(name, Digest(name), 5) for name in names[1::2])
        excluded = tuple(dataclasses.replace(loss, permanent=True) for loss in lost[::4])
        changes: dict[str, Any] = {
            "cohort": names,
            "away": names[::4],
            "losses": lost,
            "receipts": receipts,
            "excluded": excluded,
        }
        run = with_state(run, **changes)
        members = [ClientRecord(name, GroupName(name), GroupRole.TRAIN, 5, "1", 0.0, 0.0) for name in names]
        return calls_of(lambda: participants(run, members, {}, {}, 9.0))

    assert cost(400) <= GROWTH * cost(200)


def test_each_client_has_one_state() -> None:
    ann, ben, cat, dan, eve = (ClientId(name) for name in ("ann", "ben", "cat", "dan", "eve"))
    changes: dict[str, Any] = {
        "cohort": (ann, ben, cat, dan),
        "away": (cat,),
        "receipts": (ev.Receipt(ann, Digest("u"), 5),),
        "reported": (dan,),
        "excluded": (ev.PlaceLost(1.0, eve, "no", permanent=True), ev.PlaceLost(1.0, ann, "no", permanent=True)),
    }
    state = dataclasses.replace(collecting_run().state, **changes)
    done, lost = ParticipantState.DONE, ParticipantState.LOST
    expected = {ann: done, ben: ParticipantState.ASSIGNED, cat: lost, dan: done, eve: lost}
    assert states_of(state) == expected


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        (Phase.KEYING, "1 of 4 members have sent their keys; 3 are needed, this step ends in 5 s"),
        (Phase.SHARING, "1 of 4 members have dealt their shares; 3 are needed, this step ends in 5 s"),
        (
            Phase.CONFIRMING,
            "1 of 4 members have confirmed which updates the sum has; 2 are needed, this step ends in 5 s",
        ),
        (Phase.UNMASKING, "1 of 4 members have revealed the sum's masks; 2 are needed, this step ends in 5 s"),
    ],
)
def test_each_step_of_a_private_round_is_shown_with_those_who_have_done_it(phase: Phase, words: str) -> None:
    names = tuple(ClientId(name) for name in ("ann", "ben", "cat", "dan"))
    sent = (ev.SentMessage(names[1], Digest("m")),)
    changes: dict[str, Any] = {
        "phase": phase,
        "private": PrivateRounds(colluders=1),
        "policy": RoundPolicy(min_clients=3, target_clients=4),
        "cohort": names,
        "away": (names[3],),
        "slots": 4,
        "deadline_s": 15.0,
        **dict.fromkeys(("keyed", "dealt", "confirmed", "revealed"), sent),
    }
    run = with_state(collecting_run(), **changes)
    assert what_next(run, "", 0, 10.0) == words
    done, assigned, lost = ParticipantState.DONE, ParticipantState.ASSIGNED, ParticipantState.LOST
    assert states_of(run.state) == dict(zip(names, (assigned, done, assigned, lost), strict=True))
    assert why_waiting(run, ClientId("eve")) == "r: round 0 is private and under way, the next one may have a slot"


@pytest.mark.parametrize(
    ("weighting", "private", "is_said"),
    [("adaptive", True, True), ("uniform", True, False), ("adaptive", False, False)],
)
def test_status_says_that_clients_compute_fair_weights_in_private_rounds(
    weighting: Any, private: bool, is_said: bool
) -> None:
    rounds = PrivateRounds() if private else None
    run = with_state(collecting_run(), private=rounds, aggregation=Aggregation(weighting=weighting))
    for phase in (Phase.WAITING, Phase.KEYING, Phase.COLLECTING, Phase.EVALUATING):
        said = what_next(with_state(run, phase=phase), "", 0, 10.0).endswith("and only the sum of the weights is known")
        assert said == (is_said and phase is not Phase.EVALUATING)


@pytest.mark.parametrize(("least", "then"), [(3, "the round is given up"), (2, "extend")])
def test_status_says_what_comes_after_the_deadline_of_a_private_round(least: int, then: str) -> None:
    ann, ben = (ev.SentMessage(ClientId(name), Digest(name), least=least) for name in ("ann", "ben"))
    policy = RoundPolicy(min_clients=2, target_clients=2, on_missed_quorum="extend")
    facts: dict[str, Any] = {"private": PrivateRounds(colluders=0), "policy": policy, "dealt": (ann, ben)}
    facts["gives_up_small_sums"] = True
    text = what_next(with_state(collecting_run(), **facts, deadline_s=60.0), "", 0, 10.0)
    assert f"deadline in 50 s, then {then}" in text


@pytest.mark.parametrize(
    ("changes", "is_said"),
    [
        ({"phase": Phase.EVALUATING, "round": 3}, True),
        ({"phase": Phase.EVALUATING, "round": 2}, False),
        ({"phase": Phase.ENDED, "round": 3, "outcome": Outcome.COMPLETED}, True),
        ({"phase": Phase.ENDED, "round": 3, "outcome": Outcome.CANCELLED}, False),
        ({"phase": Phase.ENDED, "outcome": Outcome.COMPLETED, "private": None}, False),
        ({"phase": Phase.ENDED, "outcome": Outcome.COMPLETED, "private": PrivateRounds(closing_scores=False)}, False),
        ({"phase": Phase.ENDED, "round": 4, "outcome": Outcome.COMPLETED, "closes": True}, False),
    ],
)
def test_status_says_that_no_closing_round_collects_the_scores_of_the_last_version(
    changes: dict[str, Any], is_said: bool
) -> None:
    facts: dict[str, Any] = {"private": PrivateRounds(), "version": ModelVersion(3), "rounds": 3, **changes}
    run = with_state(collecting_run(), **facts)
    assert ("this run has no closing round" in what_next(run, "", 0, 10.0)) == is_said


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (
            {"phase": Phase.WAITING, "deadline_s": 30.0},
            "the closing round sums the scores of version 3; it starts in 20 s",
        ),
        ({"phase": Phase.COLLECTING, "round": 4, "deadline_s": 30.0}, "this is the closing round: nobody trains"),
        ({"phase": Phase.COLLECTING, "deadline_s": 30.0}, ""),
    ],
)
def test_status_says_what_a_closing_round_is_for(facts: dict[str, Any], expected: str) -> None:
    closing = {"private": PrivateRounds(), "closes": True, "version": ModelVersion(3), "rounds": 3, "round": 3}
    text = what_next(with_state(collecting_run(), **{**closing, **facts}), "", 0, 10.0)
    assert expected in text
    assert ("closing" in text) == bool(expected)


def session(**facts: Any) -> Session:
    return Session(ClientId("ben"), "b", GroupName("g"), GroupRole.TRAIN, 75, "1", 8.0, polls_open=1, **facts)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"takeovers_s": (1.0, 2.0)}, "identity used from two places: 2 takeovers in 10 minutes"),
        ({"takeovers_s": (1.0,)}, "1 update refused"),
        (
            {"data_changed_s": 60.0},
            "its private file has changed on 1970-01-01 00:01 UTC: 75 questions now, its weight stays 60",
        ),
        ({"data_changed_s": -1.0}, "1 update refused"),  # before the run was created
    ],
)
def test_an_administrator_learns_of_a_shared_identity_and_of_changed_data(facts: dict[str, Any], reason: str) -> None:
    run = collecting_run(examples={ClientId("ben"): 60})
    member = ClientRecord(ClientId("ben"), GroupName("g"), GroupRole.TRAIN, 9, "1", 0.0, 0.0)
    [shown] = participants(run, [member], {ClientId("ben"): session(**facts)}, {}, 9.0, {ClientId("ben"): 1})
    assert (shown.reason, shown.observed) == (reason, "")


def test_what_the_coordinator_notices_is_apart_from_failures_and_refusals() -> None:
    members = [
        ClientRecord(ClientId(name), GroupName("g"), GroupRole.TRAIN, 9, "1", 0.0, 0.0)
        for name in ("ann", "ben", "cem", "dan")
    ]
    refused = {ClientId("ben"): 1, ClientId("dan"): 3}
    shown = participants(collecting_run(), members, {}, {}, 9.0, refused, kept_out=[ClientId("cem")])
    assert [(person.reason, person.observed) for person in shown] == [
        ("WORKER_FAILED: its disk is full", ""),
        *[("has a slot, is not connected",) * 2],
        *[("not connected",) * 2],
        *[("not connected",) * 2],
    ]
    lost, assigned, away = ParticipantState.LOST, ParticipantState.ASSIGNED, ParticipantState.AWAY
    assert [person.state for person in shown] == [lost, assigned, away, away]


def test_a_connected_client_shows_that_it_comes_and_goes_or_that_its_updates_were_refused() -> None:
    names = [ClientId("cem"), ClientId("dan")]
    members = [ClientRecord(name, GroupName("g"), GroupRole.TRAIN, 9, "1", 0.0, 0.0) for name in names]
    sessions = {name: Session(name, "one", GroupName("g"), GroupRole.TRAIN, 9, "1", 9.0) for name in names}
    cem, dan = participants(collecting_run(), members, sessions, {}, 9.0, dict.fromkeys(names, 3), kept_out=names[:1])
    assert cem.state is ParticipantState.IDLE
    assert (cem.reason, cem.observed) == (COMES_AND_GOES, COMES_AND_GOES)
    assert (dan.reason, dan.observed) == ("3 updates refused", "")
