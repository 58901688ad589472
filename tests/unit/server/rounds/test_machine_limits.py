"""The round machine near its limits of time and number, and in every phase that an event can meet."""

from dataclasses import replace
from typing import Any

import pytest
from support.round_policies import TWO_OF_THREE

from pluralllm.common.errors.tree import AlreadyCommitted, LeaseLost, RoundClosed, RunNotEnded, WrongBase, WrongPhase
from pluralllm.common.words.aggregation import Aggregation
from pluralllm.common.words.ids import ClientId, Digest, GroupName, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.reward_weights import RewardAggregation
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.clipping import clip_scales
from pluralllm.server.rounds.looking import MAX_SLOTS_LOST
from pluralllm.server.rounds.machine import MAX_REFUSALS_KEPT, MAX_REFUSALS_PER_CLIENT, step
from pluralllm.server.rounds.state import Outcome, Phase, Run

ANN, BEN, CAT, DAN = (ClientId(name) for name in ("ann", "ben", "cat", "dan"))
POLICY = TWO_OF_THREE.model_copy(update={"max_extensions": 2})
LOST = ev.PlaceLost(1.0, BEN, "gone", permanent=False)


def a_run(phase: Phase = Phase.WAITING, **changes: Any) -> Run:
    """Returns a run whose first version is evaluated."""
    run = Run(RunId("r"), 7, 4, POLICY, 0, Digest("d0"))
    return replace(run, **{"phase": phase, "evaluated": ModelVersion(0), **changes})


def seen(at_s: float, *trainers: ClientId, held_out: tuple[ClientId, ...] = ()) -> ev.ClientsSeen:
    return ev.ClientsSeen(at_s, trainers, held_out)


def update(client: ClientId, at_s: float = 20.0, **receipt: Any) -> ev.UpdateArrived:
    values = {"client": client, "digest": Digest(f"u-{client}"), "examples": 10}
    return ev.UpdateArrived(at_s, RoundNumber(1), ModelVersion(0), ev.Receipt(**{**values, **receipt}))


def score(client: ClientId, version: int = 0, at_s: float = 5.0) -> ev.EvaluationArrived:
    given = ev.Score(client, GroupName(client), GroupRole.TRAIN, ModelVersion(version), 0.5, 0.5, None, 5)
    return ev.EvaluationArrived(at_s, given)


def collecting(*clients: ClientId, **changes: Any) -> Run:
    """Returns a run whose round 1 has been open since the time 10 with these clients."""
    return replace(step(a_run(gathered_s=0.0), seen(10, *(clients or (ANN, BEN, CAT))))[0], **changes)


def evaluating(**changes: Any) -> Run:
    """Returns a run that evaluates version 0 with ann and ben."""
    run = a_run(Phase.EVALUATING, evaluated=None, deadline_s=60.0, cohort=(ANN, BEN), roster=(ANN, BEN))
    return replace(run, **changes)


def aggregating() -> Run:
    run = collecting()
    for client in (ANN, BEN, CAT):
        run, _ = step(run, update(client))
    assert run.phase is Phase.AGGREGATING
    return run


def ended() -> Run:
    return step(collecting(), ev.RunCancelled(30, "enough"))[0]


def unchanged(run: Run, event: ev.Event) -> bool:
    return step(run, event) == (run, ())


# Gathering


def test_a_round_opens_at_the_target_and_with_the_least_clients_when_the_gather_time_is_over() -> None:
    run, effects = step(a_run(), seen(10, ANN, BEN, CAT))
    assert (run.phase, run.round, run.slots, run.deadline_s, run.since_s) == (Phase.COLLECTING, 1, 3, 110, 10)
    assert effects == (ev.OpenRound(RoundNumber(1), ModelVersion(0), (ANN, BEN, CAT)),)
    run, _ = step(a_run(), seen(10, ANN, BEN))
    assert (run.phase, run.gathered_s, run.roster) == (Phase.WAITING, 10, (ANN, BEN))
    assert step(run, seen(19.999, ANN, BEN))[0].phase is Phase.WAITING
    assert step(run, seen(20, ANN, BEN))[0].phase is Phase.COLLECTING
    assert step(run, seen(12, ANN, BEN, CAT, DAN))[0].slots == 3


def test_the_gather_time_stops_below_the_least_number_and_is_not_started_by_one_client() -> None:
    run, _ = step(a_run(), seen(10, ANN))
    assert (run.gathered_s, run.roster) == (None, (ANN,))
    assert unchanged(run, seen(11, ANN))
    run, _ = step(run, seen(12, ANN, BEN))
    assert run.gathered_s == 12
    run, _ = step(run, seen(13, BEN))
    assert run.gathered_s is None


def test_the_first_evaluation_waits_for_each_named_group_but_not_for_ever() -> None:
    run = a_run(evaluated=None, named_groups=4)
    waiting, _ = step(run, seen(10, ANN, BEN, CAT))
    assert waiting.phase is Phase.WAITING
    assert step(waiting, seen(19.9, ANN, BEN, CAT))[0].phase is Phase.WAITING
    opened, effects = step(waiting, seen(20, ANN, BEN, CAT))
    assert (opened.phase, opened.deadline_s, opened.since_s, effects) == (Phase.EVALUATING, 70, 20, ())
    assert step(run, seen(10, ANN, BEN, CAT, held_out=(DAN,)))[0].phase is Phase.EVALUATING
    later = replace(run, evaluated=ModelVersion(0))
    assert step(later, seen(10, ANN, BEN, CAT))[0].phase is Phase.COLLECTING, "named groups matter once"


def test_excluded_clients_are_not_seen() -> None:
    gone = replace(LOST, permanent=True)
    run = a_run(excluded=(gone,))
    assert step(run, seen(10, ANN, BEN))[0].roster == (ANN,)
    assert step(run, seen(10, ANN, held_out=(BEN,)))[0].roster == (ANN,)
    assert not run.is_excluded(ANN)


@pytest.mark.parametrize("run", [a_run(Phase.CREATED), ended(), aggregating()])
def test_clients_open_nothing_in_other_phases(run: Run) -> None:
    after, effects = step(run, seen(50, ANN, BEN, CAT, DAN))
    assert (after.phase, after.cohort, effects) == (run.phase, run.cohort, ())


def test_a_paused_run_gathers_nothing() -> None:
    run, _ = step(a_run(paused=True), seen(10, ANN, BEN, CAT))
    assert (run.phase, run.gathered_s, run.roster) == (Phase.WAITING, None, (ANN, BEN, CAT))


@pytest.mark.parametrize("run", [a_run(Phase.CREATED), ended()])
def test_runs_that_have_not_begun_or_are_over_see_nobody(run: Run) -> None:
    assert unchanged(run, seen(50, ANN, BEN, CAT, held_out=(DAN,)))


def test_a_client_that_holds_out_gets_no_slot_of_a_round_that_trains() -> None:
    run, _ = step(collecting(ANN, BEN, slots=3), seen(20, held_out=(DAN,)))
    assert (run.cohort, run.roster) == ((ANN, BEN), (ANN, BEN, DAN))


def test_a_client_that_has_lost_three_slots_of_an_evaluation_is_not_asked_again() -> None:
    run = evaluating(roster=(ANN, BEN, CAT), losses=(LOST,) * 3, away=(BEN,))
    assert step(run, seen(6, BEN))[0].away == (BEN,)
    assert step(replace(run, losses=(LOST,) * 2), seen(6, BEN))[0].away == ()


# The operator


@pytest.mark.parametrize("run", [a_run(), collecting(), evaluating(), aggregating()])
def test_a_started_run_is_not_started_again_but_paused_and_resumed(run: Run) -> None:
    assert unchanged(run, ev.RunStarted(50))
    paused, effects = step(run, ev.RunPaused(50))
    assert (paused, effects) == (replace(run, paused=True), ())
    assert unchanged(paused, ev.RunPaused(51))
    assert step(paused, ev.RunResumed(52)) == (run, ())
    assert unchanged(run, ev.RunResumed(53))


def test_a_created_run_starts_to_wait_and_cannot_be_paused() -> None:
    run = a_run(Phase.CREATED, evaluated=None)
    started, effects = step(run, ev.RunStarted(5))
    assert (started, effects) == (replace(run, phase=Phase.WAITING, since_s=5), ())
    for event in (ev.RunPaused(1), ev.RunResumed(1)):
        with pytest.raises(WrongPhase):
            step(run, event)
    assert step(run, ev.RunCancelled(6, "no"))[1] == (ev.EndRun("cancelled", "no"),)


def test_an_ended_run_cannot_be_started_paused_resumed_or_cancelled() -> None:
    aborted = replace(ended(), outcome=Outcome.ABORTED)
    for event in (ev.RunStarted(50), ev.RunPaused(50), ev.RunResumed(50), ev.RunCancelled(50, "again")):
        with pytest.raises(WrongPhase):
            step(aborted, event)
    assert unchanged(ended(), ev.RunCancelled(50, "again"))


@pytest.mark.parametrize("outcome", Outcome)
def test_an_ended_run_is_archived_and_brought_back_and_nothing_else_of_it_changes(outcome: Outcome) -> None:
    run = replace(ended(), outcome=outcome)
    archived, effects = step(run, ev.RunArchived(50))
    assert (archived, effects) == (replace(run, archived=True), ())
    assert unchanged(archived, ev.RunArchived(51))
    assert step(archived, ev.RunUnarchived(52)) == (run, ())
    assert unchanged(run, ev.RunUnarchived(53))


@pytest.mark.parametrize("run", [a_run(Phase.CREATED), a_run(), collecting(), aggregating(), evaluating()])
def test_a_run_that_goes_on_is_not_archived_and_the_refusal_says_what_to_do(run: Run) -> None:
    with pytest.raises(RunNotEnded) as refused:
        step(run, ev.RunArchived(50))
    why, fix = "only a run that has ended can be archived", f"pluralllm run cancel {run.id}"
    assert all(words in str(refused.value) for words in (f"Run {run.id} is {run.phase};", why, fix))
    assert unchanged(run, ev.RunUnarchived(50)), "it is not archived, so there is nothing to take back"


@pytest.mark.parametrize(
    ("run", "abandons"), [(collecting(), True), (aggregating(), True), (evaluating(), False), (a_run(), False)]
)
def test_a_cancelled_run_abandons_an_open_round(run: Run, abandons: bool) -> None:
    over, effects = step(replace(run, paused=True), ev.RunCancelled(50, "enough"))
    assert (over.phase, over.outcome, over.reason, over.since_s) == (Phase.ENDED, Outcome.CANCELLED, "enough", 50)
    assert (over.paused, over.cohort, over.receipts, over.deadline_s) == (False, (), (), None)
    abandon = (ev.Abandon(run.round, "enough"),) if abandons else ()
    assert effects == (*abandon, ev.EndRun("cancelled", "enough"))


# Updates


def test_the_first_update_that_makes_a_quorum_starts_the_grace() -> None:
    run, _ = step(collecting(), update(ANN, 20))
    assert run.quorum_s is None
    run, effects = step(run, update(BEN, 30))
    assert (run.quorum_s, run.phase, len(effects)) == (30, Phase.COLLECTING, 1)
    assert unchanged(run, ev.ClockTicked(49.999))
    assert step(run, ev.ClockTicked(50))[0].phase is Phase.AGGREGATING
    run, _ = step(run, update(CAT, 40))
    assert (run.quorum_s, run.phase, run.since_s, run.deadline_s) == (30, Phase.AGGREGATING, 40, None)


def test_the_grace_ends_with_the_deadline() -> None:
    run, _ = step(collecting(), update(ANN, 20))
    run, _ = step(run, update(BEN, 100))
    assert unchanged(run, ev.ClockTicked(109.999))
    assert step(run, ev.ClockTicked(110))[0].phase is Phase.AGGREGATING


def test_a_late_update_does_not_move_the_start_of_the_grace() -> None:
    run = collecting(ANN, BEN, CAT, slots=4)
    for client, at_s in ((ANN, 20.0), (BEN, 30.0), (CAT, 45.0)):
        run, _ = step(run, update(client, at_s))
    assert run.quorum_s == 30


def test_a_complete_cohort_of_fewer_than_the_quorum_waits() -> None:
    run = collecting(ANN, BEN, slots=1)
    run, effects = step(run, update(ANN))
    assert run.phase is Phase.COLLECTING
    assert effects == (ev.RecordReceipt(RoundNumber(1), update(ANN).receipt),)


def test_an_update_takes_its_client_from_those_that_are_away() -> None:
    run, _ = step(collecting(), LOST)
    assert run.away == (BEN,)
    run, _ = step(run, update(BEN))
    assert (run.away, [receipt.client for receipt in run.receipts]) == ((), [BEN])
    run, _ = step(run, replace(LOST, client=CAT))
    run, _ = step(run, update(ANN))
    assert run.away == (CAT,)


def test_a_repeated_update_is_free_and_another_one_refused_also_when_the_round_is_being_averaged() -> None:
    for run in (step(collecting(), update(ANN))[0], aggregating()):
        assert unchanged(run, update(ANN, 99))
        with pytest.raises(AlreadyCommitted) as refused:
            step(run, update(ANN, digest=Digest("other")))
        assert (refused.value.client, refused.value.committed) == (ANN, "u-ann")


def test_an_update_outside_of_its_round_base_or_cohort_is_refused() -> None:
    with pytest.raises(RoundClosed):
        step(aggregating(), update(DAN))
    for number in (0, 2):
        with pytest.raises(RoundClosed) as refused:
            step(collecting(), replace(update(ANN), round=RoundNumber(number)))
        assert (refused.value.asked, refused.value.current) == (number, 1)
    delivered, _ = step(collecting(), update(ANN))
    with pytest.raises(RoundClosed):
        step(delivered, replace(update(ANN), round=RoundNumber(2)))
    with pytest.raises(WrongBase):
        step(collecting(), replace(update(ANN), base_version=ModelVersion(1)))
    with pytest.raises(LeaseLost):
        step(collecting(), update(DAN))
    with pytest.raises(LeaseLost):
        step(collecting(excluded=(LOST,)), update(BEN))


# Slots


def test_a_free_slot_goes_to_a_client_that_may_take_it() -> None:
    run, _ = step(collecting(ANN, BEN, slots=3), seen(20, CAT, DAN))
    assert len(run.cohort) == 3
    assert run.roster == (ANN, BEN, CAT, DAN)
    assert step(run, seen(21, ANN, BEN, CAT, DAN))[0].cohort == run.cohort


def test_slots_of_delivered_updates_are_not_given_again() -> None:
    run, _ = step(collecting(ANN, BEN, slots=2), update(ANN))
    run, _ = step(run, seen(21, ANN, CAT))
    assert run.cohort == (ANN, BEN)
    run, _ = step(run, LOST)
    run, _ = step(run, seen(22, ANN))
    assert run.cohort == (ANN, BEN), "ann has delivered"
    run, _ = step(run, seen(23, CAT))
    assert run.cohort == (ANN, BEN, CAT)
    assert run.active == (CAT,)


def test_a_client_loses_three_slots_of_a_round_at_most_and_other_losses_do_not_count() -> None:
    assert MAX_SLOTS_LOST == 3
    run = collecting(losses=(replace(LOST, client=ANN),) * 3)
    for attempt in range(3):
        run, _ = step(run, replace(LOST, at_s=20.0 + attempt))
        assert BEN in run.away
        run, _ = step(run, seen(20.5 + attempt, BEN))
        assert (BEN in run.active) == (attempt < 2)


@pytest.mark.parametrize(("lost_s", "is_back"), [(400.0, False), (399.9, True)])
def test_slots_lost_before_the_present_deadline_began_do_not_count(lost_s: float, is_back: bool) -> None:
    run = collecting(deadline_s=400.0 + POLICY.deadline_s, away=(BEN,), losses=(replace(LOST, at_s=lost_s),) * 3)
    assert (BEN in step(run, seen(401, BEN))[0].active) == is_back
    whole = evaluating(deadline_s=400.0 + POLICY.deadline_s, away=(BEN,), losses=(replace(LOST, at_s=lost_s),) * 3)
    assert BEN not in step(whole, seen(401, BEN))[0].active, "an evaluation has one deadline"


def test_newcomers_join_the_roster_of_a_run_that_goes_on() -> None:
    joined = ev.ClientsJoined(20, (CAT, ANN, BEN))
    run, effects = step(a_run(roster=(DAN,), excluded=(LOST,)), joined)
    assert (run.roster, effects) == ((ANN, CAT, DAN), ())
    assert unchanged(run, joined)
    for other in (a_run(Phase.CREATED), ended()):
        assert unchanged(other, joined)


def test_a_client_is_active_while_it_has_a_slot_and_has_not_delivered() -> None:
    run = collecting(away=(BEN,), receipts=(update(ANN).receipt,))
    everybody = (ANN, BEN, CAT, DAN)
    assert [run.is_active(client) for client in everybody] == [False, False, True, False]
    assert [run.has_delivered(client) for client in everybody] == [True, False, False, False]
    assert [evaluating(reported=(ANN,)).has_delivered(client) for client in everybody] == [True, False, False, False]
    assert run.free_slots == 3 - 1 - 1


def test_a_client_with_a_slot_leaves_its_slot_and_one_without_leaves_the_roster() -> None:
    run, effects = step(collecting(), LOST)
    assert (run.roster, run.away, run.losses, effects) == ((ANN, BEN, CAT), (BEN,), (LOST,), ())
    run, _ = step(run, LOST)
    assert (run.roster, run.away) == ((ANN, CAT), (BEN,))
    assert unchanged(run, LOST)
    run, _ = step(collecting(), replace(LOST, permanent=True))
    assert (run.roster, run.is_excluded(BEN)) == ((ANN, CAT), True)
    again, _ = step(run, replace(LOST, permanent=True))
    assert again.excluded == run.excluded
    assert unchanged(ended(), LOST)


def test_a_readmitted_client_is_excluded_no_longer_and_others_still_are() -> None:
    run = a_run(excluded=(LOST, replace(LOST, client=CAT)))
    after, effects = step(run, ev.ClientReturned(5, BEN))
    assert ([loss.client for loss in after.excluded], effects) == ([CAT], ())
    assert unchanged(run, ev.ClientReturned(5, ANN))


def test_a_revoked_member_keeps_nothing_in_an_open_round() -> None:
    run, _ = step(collecting(), update(ANN))
    run, _ = step(run, update(BEN))
    after, effects = step(run, ev.MemberRevoked(30, BEN))
    assert (after.quorum_s, effects) == (None, (ev.WithdrawReceipt(RoundNumber(1), BEN),))
    assert after.is_excluded(BEN)
    assert not after.is_excluded(ANN)
    three = replace(run, policy=POLICY.model_copy(update={"min_clients": 1}))
    assert step(three, ev.MemberRevoked(30, BEN))[0].quorum_s == run.quorum_s
    assert step(run, ev.MemberRevoked(30, CAT))[1] == ()
    assert unchanged(run, ev.MemberRevoked(30, DAN))
    known = replace(a_run(), roster=(DAN,))
    assert step(known, ev.MemberRevoked(30, DAN))[0].is_excluded(DAN)
    late = replace(collecting(), roster=())
    assert step(late, ev.MemberRevoked(30, ANN))[0].is_excluded(ANN)
    average, effects = step(aggregating(), ev.MemberRevoked(30, BEN))
    assert ([receipt.client for receipt in average.receipts], effects) == ([ANN, BEN, CAT], ())


@pytest.mark.parametrize("name", [f"c{number}" for number in range(10)])
def test_a_free_slot_is_not_wasted_on_a_client_that_has_delivered_or_has_a_slot(name: str) -> None:
    run, _ = step(collecting(ANN, BEN, slots=3), update(ANN))
    run, _ = step(run, seen(21, ANN, BEN, ClientId(name)))
    assert name in run.active


def test_no_slot_is_given_while_there_are_more_clients_than_slots() -> None:
    run, _ = step(collecting(ANN, BEN, CAT, slots=2), update(ANN))  # ann was late, and its slot has a new client
    assert step(run, seen(21, DAN, ClientId("eve")))[0].cohort == (ANN, BEN, CAT)


# Deadlines


def test_a_round_without_quorum_is_extended_some_times_and_then_ends() -> None:
    run = collecting()
    assert unchanged(run, ev.ClockTicked(109.999))
    for number in (1, 2):
        run, effects = step(run, ev.ClockTicked(100.0 * number + 10))
        assert (run.extensions, run.deadline_s, effects) == (number, 100 * number + 110, ())
    assert step(run, ev.ClockTicked(310))[0].outcome is Outcome.ABORTED
    assert step(run, ev.ClockTicked(310))[0].reason == "round 1: 0 of 2 updates at the deadline"


@pytest.mark.parametrize("run", [a_run(), aggregating(), ended(), collecting(deadline_s=None)])
def test_time_alone_ends_no_other_phase(run: Run) -> None:
    assert unchanged(run, ev.ClockTicked(10_000))


def test_a_start_of_the_coordinator_gives_all_deadlines_their_time_again() -> None:
    run, _ = step(collecting(), ev.CoordinatorStarted(1000))
    assert (run.deadline_s, run.quorum_s) == (1100, None)
    run, _ = step(collecting(quorum_s=20.0), ev.CoordinatorStarted(1000))
    assert (run.deadline_s, run.quorum_s) == (1100, 1000)
    run, _ = step(evaluating(), ev.CoordinatorStarted(1000))
    assert run.deadline_s == 1050
    run, _ = step(a_run(gathered_s=5.0), ev.CoordinatorStarted(1000))
    assert (run.gathered_s, run.deadline_s) == (None, None)
    assert unchanged(a_run(), ev.CoordinatorStarted(1000))
    assert unchanged(aggregating(), ev.CoordinatorStarted(1000))


# Averages


def published(run: Run, digest: str = "d1") -> tuple[Run, tuple[ev.Effect, ...]]:
    return step(run, ev.ModelAveraged(60, run.round, Digest(digest), (Digest("m"),)))


def test_an_average_becomes_the_next_version() -> None:
    before = aggregating()
    run, effects = published(before)
    assert (run.version, run.model_digest, run.phase, run.since_s) == (1, "d1", Phase.WAITING, 60)
    assert effects == (ev.Publish(RoundNumber(1), ModelVersion(1), Digest("d1"), before.receipts, (Digest("m"),)),)
    assert published(run) == (run, ()), "a repetition is free"
    for other in (replace(run, round=RoundNumber(2)), run):
        with pytest.raises(RoundClosed):
            step(other, ev.ModelAveraged(60, RoundNumber(1), Digest("d1" if other.round == 2 else "d2")))
    with pytest.raises(RoundClosed):
        step(aggregating(), ev.ModelAveraged(60, RoundNumber(2), Digest("d1")))


def test_an_average_that_failed_costs_the_round_or_the_run_and_only_that_of_the_open_round() -> None:
    failed = ev.AveragingFailed(60, RoundNumber(1), "lost", base_lost=False)
    run, effects = step(aggregating(), failed)
    assert (run.phase, run.version, effects) == (Phase.WAITING, 0, (ev.Abandon(RoundNumber(1), "lost"),))
    run, effects = step(aggregating(), replace(failed, base_lost=True))
    assert (run.outcome, run.reason) == (Outcome.ABORTED, "lost")
    assert effects == (ev.Abandon(RoundNumber(1), "lost"), ev.EndRun("aborted", "lost"))
    assert unchanged(aggregating(), replace(failed, round=RoundNumber(2)))
    assert unchanged(collecting(), failed)


def test_the_updates_that_a_rule_has_chosen_are_the_weights_on_record() -> None:
    run = replace(aggregating(), aggregation=Aggregation(rule="multi_krum", weighting="uniform"), limits_members=True)
    averaged = ev.ModelAveraged(60, run.round, Digest("d1"), chosen=(1.0, 0.0, 1.0))
    _, (publish, *_) = step(run, averaged)
    assert isinstance(publish, ev.Publish)
    assert publish.weights == (1.0, 0.0, 1.0)
    assert ev.event_from_facts("ModelAveraged", ev.event_to_facts(averaged)) == averaged
    earlier = {"at_s": 60, "round": 1, "digest": "d1", "moments": []}  # of a release that knew no such rule
    assert ev.event_from_facts("ModelAveraged", earlier) == replace(averaged, chosen=())


def test_the_rule_median_norm_clip_shortens_to_the_median() -> None:
    rule = Aggregation(rule="median_norm_clip", weighting="uniform")
    run = collecting(limits_members=True, aggregation=rule)
    effects: tuple[ev.Effect, ...] = ()
    for client, norm in ((ANN, 1.0), (BEN, 2.0), (CAT, 4.0)):
        run, effects = step(run, update(client, norm=norm))
    average = effects[-1]
    assert isinstance(average, ev.Average)
    assert average.scales == (1.0, 1.0, 0.5)


def test_only_runs_that_limit_members_shorten_updates() -> None:
    run = collecting(limits_members=True)
    effects: tuple[ev.Effect, ...] = ()
    for client, norm in ((ANN, 1.0), (BEN, 1.0), (CAT, 30.0)):
        run, effects = step(run, update(client, norm=norm))
    average = effects[-1]
    assert isinstance(average, ev.Average)
    assert average.scales == clip_scales(run.receipts, (1 / 3,) * 3) != ()
    _, (publish, *_) = published(run)
    assert isinstance(publish, ev.Publish)
    assert publish.scales == average.scales
    free, (publish, *_) = published(replace(run, limits_members=False))
    assert isinstance(publish, ev.Publish)
    assert (publish.scales, free.version) == ((), 1)


@pytest.mark.parametrize(("number", "phase"), [(1, Phase.WAITING), (2, Phase.EVALUATING), (4, Phase.EVALUATING)])
def test_every_second_version_is_evaluated_and_the_last_one(number: int, phase: Phase) -> None:
    run = replace(aggregating(), round=RoundNumber(number))
    after, _ = published(run)
    assert after.phase is phase
    if phase is Phase.EVALUATING:
        assert (after.deadline_s, after.since_s, after.cohort) == (110, 60, ())


def test_the_last_round_ends_the_run_without_an_evaluation_if_its_version_is_evaluated_already() -> None:
    policy = POLICY.model_copy(update={"on_missed_quorum": "skip"})
    for number, phase in ((3, Phase.WAITING), (4, Phase.ENDED), (5, Phase.ENDED)):
        run, effects = step(collecting(policy=policy, round=RoundNumber(number)), ev.ClockTicked(110))
        assert (run.phase, run.cohort) == (phase, ())
        ends = [ev.EndRun("completed", "4 rounds done")] if phase is Phase.ENDED else []
        assert list(effects[1:]) == ends


# Evaluations


def test_scores_are_recorded_once_and_the_last_one_closes_the_evaluation() -> None:
    run, effects = step(evaluating(), score(BEN))
    assert (run.reported, run.phase, effects) == ((BEN,), Phase.EVALUATING, (ev.RecordEvaluation(score(BEN).score),))
    assert unchanged(run, score(BEN, at_s=9))
    run, _ = step(run, score(ANN))
    assert (run.phase, run.evaluated, run.reported, run.since_s) == (Phase.WAITING, 0, (), 5)


def test_scores_of_strangers_other_versions_and_other_phases_are_refused() -> None:
    for run, event in (
        (evaluating(), score(CAT)),
        (evaluating(), score(ANN, version=1)),
        (evaluating(reported=(ANN,)), score(ANN, version=1)),
        (collecting(), score(ANN)),
    ):
        with pytest.raises(LeaseLost):
            step(run, event)


def test_an_evaluation_waits_for_the_clients_of_its_roster() -> None:
    run, _ = step(evaluating(roster=(ANN, BEN, CAT)), score(ANN))
    run, _ = step(run, score(BEN))
    assert run.phase is Phase.EVALUATING, "cat is there and will be asked"
    run, _ = step(run, seen(6, CAT))
    assert run.active == (CAT,)
    run, _ = step(run, replace(LOST, client=CAT))
    assert run.phase is Phase.WAITING
    nobody, _ = step(evaluating(), LOST)
    nobody, _ = step(nobody, replace(LOST, client=ANN))
    assert nobody.phase is Phase.EVALUATING, "an evaluation without a score waits for its deadline"


def test_an_evaluation_waits_for_a_client_that_is_asked_though_it_is_not_in_the_roster() -> None:
    assert step(evaluating(roster=(ANN,)), score(ANN))[0].phase is Phase.EVALUATING


def test_a_client_that_was_away_and_reports_after_all_is_away_no_longer() -> None:
    run, _ = step(evaluating(roster=(ANN, BEN, CAT)), LOST)
    assert run.away == (BEN,)
    run, _ = step(run, score(BEN))
    assert (run.away, run.reported) == ((), (BEN,))


def test_newcomers_of_an_evaluation_are_asked_and_those_that_have_reported_are_not() -> None:
    run, _ = step(evaluating(), score(ANN))
    run, effects = step(run, seen(6, ANN, held_out=(DAN,)))
    assert (run.cohort, run.roster, effects) == ((ANN, BEN, DAN), (ANN, BEN, DAN), ())
    assert unchanged(run, seen(7, ANN))
    lost, _ = step(run, LOST)
    assert lost.away == (BEN,)
    back, _ = step(lost, seen(8, BEN))
    assert (back.away, back.active) == ((), (BEN, DAN))


def test_an_evaluation_ends_at_its_deadline_and_keeps_those_that_answered() -> None:
    run, _ = step(evaluating(), score(ANN))
    assert unchanged(run, ev.ClockTicked(59.999))
    after, effects = step(run, ev.ClockTicked(60))
    assert (after.phase, after.evaluated, after.roster, after.since_s, effects) == (Phase.WAITING, 0, (ANN,), 60, ())
    assert unchanged(replace(run, deadline_s=None), ev.ClockTicked(1000))


# Refusals


def test_the_newest_refusals_are_kept_and_five_of_a_client_in_a_round() -> None:
    assert (MAX_REFUSALS_KEPT, MAX_REFUSALS_PER_CLIENT) == (20, 5)
    run, _ = step(collecting(), refused := ev.UpdateRefused(1.0, RoundNumber(1), BEN, "LATE", "late"))
    assert unchanged(run, refused)
    run = collecting()
    for number in range(6):
        run, _ = step(run, ev.UpdateRefused(float(number), RoundNumber(1), ANN, "LATE", "late"))
    assert [refusal.at_s for refusal in run.refusals] == [0, 1, 2, 3, 4]
    assert unchanged(run, run.refusals[0])
    run, _ = step(run, ev.UpdateRefused(9.0, RoundNumber(2), ANN, "LATE", "late"))
    run, _ = step(run, ev.UpdateRefused(9.0, RoundNumber(1), BEN, "LATE", "late"))
    assert len(run.refusals) == 7
    for number in range(30):
        run, _ = step(run, ev.UpdateRefused(float(number), RoundNumber(3), ClientId(f"c{number}"), "LATE", "late"))
    assert len(run.refusals) == 20
    assert run.refusals[-1].at_s == 29


# Runs that ask for rewards


REWARDS = RewardAggregation(rule="adaptive", temperature=0.5)
ASKED = ev.RolloutsAsked(30.0, Digest("batch"), 7)


def rewarding(**changes: Any) -> Run:
    return a_run(rewards=REWARDS, evaluated=None, **changes)


def test_a_batch_opens_a_round_whose_slots_are_free() -> None:
    run, effects = step(rewarding(), ASKED)
    assert (run.phase, run.round, run.slots, run.cohort) == (Phase.COLLECTING, 1, 3, ())
    assert (run.since_s, run.deadline_s, run.rollouts, run.candidates) == (30, 130, "batch", 7)
    assert effects == (ev.OpenRound(RoundNumber(1), ModelVersion(0), (), "batch"),)
    assert unchanged(run, replace(ASKED, at_s=31))
    run, _ = step(run, seen(31, ANN, held_out=(BEN,)))
    assert run.cohort == (ANN, BEN), "clients of held-out groups score as well"


def test_clients_alone_open_no_round_of_a_run_that_asks_for_rewards() -> None:
    run, effects = step(rewarding(), seen(30, ANN, BEN, CAT))
    assert (run.phase, run.roster, effects) == (Phase.WAITING, (ANN, BEN, CAT), ())


def test_another_batch_waits_for_the_one_before_and_for_the_end_of_a_pause() -> None:
    opened, _ = step(rewarding(), ASKED)
    for run, phase in (
        (opened, "collecting, round 1"),
        (rewarding(paused=True), "paused"),
        (rewarding(phase=Phase.CREATED), "created, round 0"),
    ):
        with pytest.raises(WrongPhase) as refused:
            step(run, replace(ASKED, digest=Digest("other")))
        assert refused.value.phase == phase
    with pytest.raises(WrongPhase):
        step(a_run(), ASKED)


def test_rewards_are_weighed_with_the_newest_means_and_never_evaluated() -> None:
    run, _ = step(rewarding(rounds=2), ASKED)
    run, _ = step(run, seen(31, ANN, BEN, CAT))
    effects: tuple[ev.Effect, ...] = ()
    for client, distance in ((ANN, 0.1), (BEN, 0.5), (CAT, 0.0)):
        run, effects = step(run, update(client, 40, distance=distance))
    average = effects[-1]
    assert isinstance(average, ev.Average)
    assert average.weights[1] > average.weights[0] > 0
    assert average.scales == ()
    assert sum(average.weights) == pytest.approx(1)
    run, (publish, *_) = published(run)
    assert isinstance(publish, ev.Publish)
    assert (publish.weights, run.phase, run.version) == (average.weights, Phase.WAITING, 1)
    assert [client for client, _ in run.fairness_history] == [ANN, BEN, CAT]
    assert dict(run.fairness_history) == pytest.approx({ANN: 0.9, BEN: 0.5, CAT: 1.0})
    run, _ = step(run, replace(ASKED, digest=Digest("second")))
    run, effects = step(run, ev.RunCancelled(50, "enough"))
    assert (run.round, run.candidates, run.rollouts) == (2, 0, "")


def test_the_last_batch_ends_the_run() -> None:
    run, _ = step(rewarding(rounds=1), ASKED)
    run, _ = step(run, seen(31, ANN, BEN, CAT))
    for client in (ANN, BEN, CAT):
        run, _ = step(run, update(client, 40, distance=0.5))
    run, effects = published(run)
    assert (run.phase, run.outcome) == (Phase.ENDED, Outcome.COMPLETED)
    assert effects[-1] == ev.EndRun("completed", "1 rounds done")


def test_weights_of_a_training_run_follow_its_aggregation() -> None:
    run = collecting(aggregation=Aggregation(weighting="adaptive", fairness=5.0), fairness_history=((ANN, 0.4),))
    for client, distance in ((ANN, 0.2), (BEN, 0.6), (CAT, 0.4)):
        run, _ = step(run, update(client, distance=distance))
    run, _ = published(run)
    assert dict(run.fairness_history) == pytest.approx({"ann": 0.3, "ben": 0.6, "cat": 0.4})
