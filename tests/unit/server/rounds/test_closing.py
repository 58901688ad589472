"""The closing round: it takes all groups, comes after the last evaluation, and however it ends, the run is complete."""

from dataclasses import replace
from typing import Any

import pytest
from unit.server.rounds.test_private import (
    ANN,
    FIVE,
    GUS,
    ONE,
    POLICY,
    SIX,
    ZERO,
    Arrival,
    a_run,
    confirmation,
    fed,
    keys,
    policy,
    receipt,
    reveal,
    shares,
    update,
)
from unit.server.rounds.test_private import collecting as collecting_to_train

from pluralllm.common.words.aggregation import Aggregation
from pluralllm.common.words.ids import ClientId, Digest, GroupName, ModelVersion, RoundNumber
from pluralllm.common.words.private_rounds import MAX_MEMBERS
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.looking import sightings
from pluralllm.server.rounds.machine import step
from pluralllm.server.rounds.state import Outcome, Phase, Run

TRAINERS, HELD_OUT = SIX[:4], SIX[4:]


def waiting(**changes: Any) -> Run:
    """Returns a run of no rounds: its first round is the closing one."""
    return a_run(**{"rounds": 0, "closes": True, "roster": SIX, "deadline_s": 100.0, **changes})


def seen(at_s: float, trainers: tuple[ClientId, ...] = TRAINERS, held_out: tuple[ClientId, ...] = HELD_OUT) -> ev.Event:
    return ev.ClientsSeen(at_s, trainers, held_out, "h1")


def keying(**changes: Any) -> Run:
    return fed(waiting(**changes), seen(10.0))


def sharing(**changes: Any) -> Run:
    return fed(keying(**changes), *map(keys, SIX))


def collecting(**changes: Any) -> Run:
    return fed(sharing(**changes), *map(shares, SIX))


def confirming(**changes: Any) -> Run:
    return fed(collecting(**changes), *map(update, SIX))


def unmasking(**changes: Any) -> Run:
    return fed(confirming(**changes), *map(confirmation, SIX[:4]))


def aggregating(**changes: Any) -> Run:
    return fed(unmasking(**changes), *map(reveal, SIX[:4]))


BEGUN = {
    Phase.KEYING: keying,
    Phase.SHARING: sharing,
    Phase.COLLECTING: collecting,
    Phase.CONFIRMING: confirming,
    Phase.UNMASKING: unmasking,
}


def test_all_groups_are_members_and_the_run_ends_with_the_sum() -> None:
    run, effects = step(waiting(), seen(10.0))
    assert effects == (ev.OpenRound(ONE, ZERO, SIX),)
    assert (run.phase, run.cohort, run.is_closing, run.waits_to_close) == (Phase.KEYING, SIX, True, False)
    tail = tuple(range(64))
    averaged = ev.ModelAveraged(70, ONE, Digest("d0"), (Digest("m"),), transcript="p", tail=tail)
    run, effects = step(aggregating(), averaged)
    everybody = tuple(map(receipt, SIX))
    published = ev.Publish(ONE, ModelVersion(1), Digest("d0"), everybody, (Digest("m"),), transcript="p", tail=tail)
    assert effects == (published, ev.EndRun("completed", "0 rounds done"))
    assert (run.phase, run.outcome, run.model_digest) == (Phase.ENDED, Outcome.COMPLETED, "d0")


def test_the_closing_round_waits_for_all_that_are_connected_and_no_longer_than_gather_s() -> None:
    run = fed(waiting(), seen(10.0, TRAINERS, (SIX[4],)))
    assert run.phase is Phase.WAITING, "fay is connected, and has work of another run"
    assert fed(run, seen(14.9, TRAINERS, (SIX[4],))).phase is Phase.WAITING
    assert fed(run, seen(15.0, TRAINERS, (SIX[4],))).cohort == FIVE
    assert fed(run, ev.ClientsSeen(11.0, TRAINERS, (SIX[4],), "h1", nobody_else=True)).cohort == FIVE
    assert fed(waiting(), seen(10.0, TRAINERS, ())).gathered_s is None, "four are too few"
    small = policy(target_clients=5)
    assert fed(waiting(policy=small), seen(10.0, TRAINERS, (SIX[4],))).phase is Phase.WAITING, "five are not all"
    large = policy(target_clients=7)
    assert fed(waiting(policy=large), seen(10.0)).cohort == SIX, "nobody else is connected"


def test_a_round_that_trains_draws_no_held_out_client() -> None:
    assert fed(a_run(), ev.ClientsSeen(10.0, FIVE, (GUS,), "h1")).phase is Phase.WAITING, "five of six that it wants"
    assert fed(a_run(), ev.ClientsSeen(10.0, SIX, (GUS,), "h1")).cohort == SIX


def test_a_closing_round_has_room_for_more_members_than_a_round_that_trains() -> None:
    many = tuple(ClientId(f"m{number:03}") for number in range(MAX_MEMBERS + 2))
    run = fed(waiting(roster=many), ev.ClientsSeen(10.0, many[:70], many[70:], "h1"))
    assert (len(run.cohort), run.slots) == (MAX_MEMBERS, MAX_MEMBERS)
    few = fed(waiting(policy=policy(target_clients=5)), seen(10.0))
    assert len(few.cohort) == 6 > fed(a_run(policy=policy(target_clients=5)), seen(10.0)).slots


def test_a_look_shows_held_out_clients_to_the_closing_round_only() -> None:
    assert sightings(waiting(), 10.0, TRAINERS, HELD_OUT, "h1") == (seen(10.0),)
    [event] = sightings(waiting(rounds=4), 10.0, TRAINERS, HELD_OUT, "h1")
    assert isinstance(event, ev.ClientsSeen)
    assert event.held_out == ()
    free = fed(keying(), ev.PlaceLost(12.0, ANN, "gone", permanent=False))
    [event] = sightings(free, 13.0, (), (GUS,), "h1")
    assert GUS in fed(free, event).cohort
    training = fed(a_run(), ev.ClientsSeen(10.0, SIX, (), "h1"), ev.PlaceLost(12.0, ANN, "gone", permanent=False))
    assert sightings(training, 13.0, (), (GUS,), "h1") == ()


@pytest.mark.parametrize("missed", ["extend", "skip", "abort"])
@pytest.mark.parametrize("phase", BEGUN)
def test_a_step_that_too_few_take_ends_the_run_as_complete_without_closing_scores(phase: Phase, missed: str) -> None:
    run = BEGUN[phase](policy=policy(on_missed_quorum=missed, max_extensions=0))
    assert run.phase is phase
    run, effects = step(run, ev.ClockTicked(1000.0))
    abandoned, end = effects
    assert isinstance(abandoned, ev.Abandon)
    assert isinstance(end, ev.EndRun)
    assert (end.outcome, run.outcome, run.version) == ("completed", Outcome.COMPLETED, 0)
    assert end.reason.startswith("0 rounds done, without closing scores: ")
    assert len(end.reason) > 50, "it says why"


@pytest.mark.parametrize("phase", [Phase.KEYING, Phase.SHARING, Phase.COLLECTING])
def test_one_member_less_leaves_a_sum_of_the_others(phase: Phase) -> None:
    run = fed(BEGUN[phase](), ev.PlaceLost(45.0, SIX[5], "gone", permanent=True))
    following: dict[Phase, tuple[Arrival, ...]] = {
        Phase.KEYING: (keys, shares, update),
        Phase.SHARING: (shares, update),
        Phase.COLLECTING: (update,),
    }
    for message in following[phase]:
        run = fed(run, *map(message, FIVE), ev.ClockTicked(200.0))
    run = fed(run, *map(confirmation, SIX[:4]), *map(reveal, SIX[:4]))
    assert (run.phase, run.summed) == (Phase.AGGREGATING, FIVE)


@pytest.mark.parametrize("weighting", ["examples", "adaptive"])
def test_the_coordinator_weighs_no_update_of_a_private_round(weighting: str) -> None:
    aggregation = Aggregation.model_validate({"weighting": weighting})
    history = ((ANN, 0.5),)
    run = aggregating(aggregation=aggregation, fairness_history=history)
    run, [published, *_] = step(run, ev.ModelAveraged(70.0, ONE, Digest("d1")))
    assert isinstance(published, ev.Publish)
    assert (published.weights, run.fairness_history) == ((), history)


def test_a_dealer_that_lies_ends_the_run_as_complete() -> None:
    run = fed(unmasking(), ev.DealtWrongly(61.0, ONE, ANN, "no polynomial"))
    assert (run.phase, run.outcome) == (Phase.ENDED, Outcome.COMPLETED)
    failed = fed(aggregating(), ev.AveragingFailed(70.0, ONE, "the sum is implausible", base_lost=False))
    assert (failed.outcome, failed.reason) == (
        Outcome.COMPLETED,
        "0 rounds done, without closing scores: the sum is implausible",
    )


def test_a_run_without_members_for_its_closing_round_ends_after_the_deadline_of_a_round() -> None:
    assert step(waiting(), ev.ClockTicked(99.9)) == (waiting(), ())
    run, effects = step(waiting(), ev.ClockTicked(100.0))
    reason = "0 rounds done, without closing scores: fewer than 5 clients were there for them"
    assert effects == (ev.EndRun("completed", reason),)
    assert run.phase is Phase.ENDED
    paused = fed(waiting(), ev.RunPaused(50.0))
    assert fed(paused, ev.ClockTicked(1000.0), seen(1001.0)).phase is Phase.WAITING
    assert step(paused, ev.RunPaused(60.0)) == (paused, ()), "it is paused already"
    assert step(waiting(), ev.RunResumed(60.0)) == (waiting(), ()), "it was not paused: nobody moves its deadline"
    resumed = fed(paused, ev.RunResumed(1000.0))
    assert fed(resumed, ev.ClockTicked(1099.0)).phase is Phase.WAITING
    assert fed(resumed, ev.ClockTicked(1100.0)).phase is Phase.ENDED
    assert fed(waiting(), ev.CoordinatorStarted(90.0)).deadline_s == 190.0
    assert step(waiting(deadline_s=None), ev.ClockTicked(1000.0)) == (waiting(deadline_s=None), ())


def after_last_round(**changes: Any) -> Run:
    """Returns a run after its only round, which is evaluating the last version."""
    dealt = collecting_to_train(rounds=1, **{"closes": True, **changes})
    summed = fed(dealt, *map(update, SIX), *map(confirmation, SIX[:4]), *map(reveal, SIX[:4]))
    return fed(summed, ev.ModelAveraged(70.0, ONE, Digest("d1")))


def test_the_closing_round_follows_the_evaluation_of_the_last_version_and_no_evaluation_follows_it() -> None:
    run = after_last_round()
    assert run.phase is Phase.EVALUATING, "the score that it sums is measured first"
    run = fed(run, ev.ClockTicked(70.0 + POLICY.evaluation_deadline_s))
    assert (run.phase, run.waits_to_close, run.deadline_s) == (Phase.WAITING, True, 370.0 + POLICY.deadline_s)
    run = replace(run, phase=Phase.AGGREGATING, round=RoundNumber(2))
    ended, effects = step(run, ev.ModelAveraged(400.0, RoundNumber(2), Digest("d1")))
    assert (ended.phase, ended.version) == (Phase.ENDED, 2)
    assert [type(effect) for effect in effects] == [ev.Publish, ev.EndRun]


def test_a_run_that_does_not_close_and_one_without_a_version_end_after_their_rounds() -> None:
    over = ev.ClockTicked(70.0 + POLICY.evaluation_deadline_s)
    assert fed(after_last_round(closes=False), over).phase is Phase.ENDED
    score = ev.Score(ANN, GroupName("g"), GroupRole.TRAIN, ZERO, 0.5, 0.5, None, 9)
    none = a_run(rounds=1, round=ONE, closes=True, phase=Phase.EVALUATING, cohort=(ANN,), roster=(ANN,), evaluated=None)
    assert fed(none, ev.EvaluationArrived(5.0, score)).phase is Phase.ENDED, "all rounds were abandoned"
