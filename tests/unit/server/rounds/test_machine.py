"""Each row of the round machine's transition table."""

from dataclasses import replace

import pytest
from support.round_policies import TWO_OF_THREE

from pluralllm.common.errors.tree import AlreadyCommitted, LeaseLost, RoundClosed, WrongBase, WrongPhase
from pluralllm.common.words.aggregation import Aggregation
from pluralllm.common.words.ids import ClientId, Digest, GroupName, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.not_reported import NotReported
from pluralllm.common.words.spec import GroupRole, RoundPolicy
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.looking import MAX_SLOTS_LOST
from pluralllm.server.rounds.machine import step
from pluralllm.server.rounds.state import Outcome, Phase, Run

ALICE, BOB, CAROL, DAVE = (ClientId(name) for name in ("alice", "bob", "carol", "dave"))
POLICY = TWO_OF_THREE


def a_run(*, rounds: int = 4, named_groups: int = 0, policy: RoundPolicy = POLICY) -> Run:
    return Run(RunId("r"), 7, rounds, policy, named_groups, Digest("d0"))


def after(run: Run, *events: ev.Event) -> tuple[Run, tuple[ev.Effect, ...]]:
    effects: tuple[ev.Effect, ...] = ()
    for event in events:
        run, now = step(run, event)
        effects += now
    return run, effects


def seen(at_s: float, *trainers: ClientId, held_out: tuple[ClientId, ...] = ()) -> ev.ClientsSeen:
    return ev.ClientsSeen(at_s, tuple(sorted(trainers)), held_out)


def update(at_s: float, client: ClientId, round_number: int = 1, base: int = 0, digest: str = "") -> ev.UpdateArrived:
    receipt = ev.Receipt(client, Digest(digest or f"u-{client}"), 10)
    return ev.UpdateArrived(at_s, RoundNumber(round_number), ModelVersion(base), receipt)


def evaluation(at_s: float, client: ClientId, version: int) -> ev.EvaluationArrived:
    score = ev.Score(client, GroupName(client), GroupRole.TRAIN, ModelVersion(version), 0.7, 0.6, None, 5)
    return ev.EvaluationArrived(at_s, score)


def collecting(policy: RoundPolicy = POLICY, rounds: int = 4) -> Run:
    """Returns a run whose round 1 has been open since t=10 with alice, bob and carol."""
    run, _ = after(a_run(policy=policy, rounds=rounds), ev.RunStarted(0))
    run, effects = after(replace(run, evaluated=ModelVersion(0)), seen(10, ALICE, BOB, CAROL))
    assert effects == (ev.OpenRound(RoundNumber(1), ModelVersion(0), (ALICE, BOB, CAROL)),)
    return run


def test_a_run_begins_with_an_evaluation_of_version_0_once_enough_clients_are_there() -> None:
    run, _ = after(a_run(), ev.RunStarted(0), seen(1, ALICE, BOB), seen(2, ALICE, BOB, CAROL, held_out=(DAVE,)))
    assert run.phase is Phase.EVALUATING
    run, _ = after(run, seen(2, ALICE, BOB, CAROL, held_out=(DAVE,)))
    assert run.active == (ALICE, BOB, CAROL, DAVE)


def test_the_first_evaluation_waits_for_every_named_group() -> None:
    run, _ = after(a_run(named_groups=4), ev.RunStarted(0), seen(1, ALICE, BOB, CAROL))
    assert run.phase is Phase.WAITING
    run, _ = after(run, seen(2, ALICE, BOB, CAROL, held_out=(DAVE,)))
    assert run.phase is Phase.EVALUATING


def test_with_fewer_than_target_clients_a_round_starts_after_the_gather_time() -> None:
    run = replace(a_run(), phase=Phase.WAITING, evaluated=ModelVersion(0))
    run, _ = after(run, seen(5, ALICE, BOB), seen(14, ALICE, BOB))
    assert run.phase is Phase.WAITING
    run, effects = after(run, seen(15, ALICE, BOB))
    assert (run.phase, run.slots) == (Phase.COLLECTING, 2)
    assert effects == (ev.OpenRound(RoundNumber(1), ModelVersion(0), (ALICE, BOB)),)


def test_nobody_waits_for_the_gather_time_or_the_grace_if_nobody_else_can_come() -> None:
    alone = replace(seen(5, ALICE, BOB), nobody_else=True)
    run = replace(a_run(named_groups=3), phase=Phase.WAITING)
    assert step(run, replace(seen(5, ALICE), nobody_else=True))[0].phase is Phase.WAITING, "two are needed"
    assert step(run, alone)[0].phase is Phase.EVALUATING
    run, _ = step(replace(run, evaluated=ModelVersion(0)), alone)
    assert (run.phase, run.cohort) == (Phase.COLLECTING, (ALICE, BOB))
    run, _ = after(collecting(), update(20, ALICE), update(21, BOB), ev.MemberRevoked(22, CAROL))
    assert step(run, seen(23))[0].phase is Phase.COLLECTING
    assert step(run, replace(seen(23, DAVE), nobody_else=True))[0].active == (DAVE,), (
        "a slot goes to a client that is here"
    )
    closed, effects = step(run, replace(seen(23), nobody_else=True))
    assert (closed.phase, [type(effect) for effect in effects]) == (Phase.AGGREGATING, [ev.Average])
    few, _ = after(collecting(), update(20, ALICE), ev.MemberRevoked(22, CAROL), ev.MemberRevoked(22, BOB))
    assert step(few, replace(seen(23), nobody_else=True))[0].phase is Phase.COLLECTING, "a round needs its quorum"
    at_work, _ = after(collecting(), update(20, ALICE), update(21, BOB))
    assert step(at_work, replace(seen(23), nobody_else=True))[0].phase is Phase.COLLECTING, "the third is at work"


def test_the_gather_time_begins_anew_when_the_quorum_was_lost_in_between() -> None:
    run = replace(a_run(), phase=Phase.WAITING, evaluated=ModelVersion(0))
    run, _ = after(run, seen(5, ALICE, BOB), seen(9, ALICE), seen(12, ALICE, BOB), seen(16, ALICE, BOB))
    assert run.phase is Phase.WAITING


def test_a_paused_run_opens_no_round_and_its_open_round_ends_as_it_would() -> None:
    run = replace(a_run(), phase=Phase.WAITING, evaluated=ModelVersion(0))
    run, effects = after(run, ev.RunPaused(1), seen(2, ALICE, BOB, CAROL))
    assert (run.phase, effects) == (Phase.WAITING, ())
    run, _ = after(run, ev.RunResumed(3), seen(4, ALICE, BOB, CAROL), ev.RunPaused(5))
    run, effects = after(run, update(6, ALICE), update(7, BOB), update(8, CAROL))
    assert run.phase is Phase.AGGREGATING


def test_a_complete_cohort_is_averaged_at_once_in_client_order() -> None:
    run, effects = after(collecting(), update(20, CAROL), update(21, ALICE), update(22, BOB))
    assert run.phase is Phase.AGGREGATING
    assert [type(effect) for effect in effects] == [ev.RecordReceipt, ev.RecordReceipt, ev.RecordReceipt, ev.Average]
    average = effects[-1]
    assert isinstance(average, ev.Average)
    assert [receipt.client for receipt in average.receipts] == [ALICE, BOB, CAROL]


def test_after_the_quorum_the_round_waits_for_the_grace_only() -> None:
    run, _ = after(collecting(), update(20, ALICE), update(30, BOB), ev.ClockTicked(49))
    assert run.phase is Phase.COLLECTING
    run, effects = after(run, ev.ClockTicked(50))
    assert run.phase is Phase.AGGREGATING
    assert effects == (ev.Average(RoundNumber(1), ModelVersion(0), run.receipts),)


def test_with_over_selection_and_no_grace_the_quorum_closes_the_round() -> None:
    run = collecting(POLICY.model_copy(update={"grace_after_quorum_s": 0.0}))
    run, _ = after(run, update(20, ALICE), update(30, BOB), ev.ClockTicked(30))
    assert run.phase is Phase.AGGREGATING


def test_at_the_deadline_a_quorum_is_averaged_though_the_grace_is_not_over() -> None:
    run, _ = after(collecting(), update(20, ALICE), update(105, BOB), ev.ClockTicked(110))
    assert run.phase is Phase.AGGREGATING


def test_a_missed_quorum_extends_the_deadline_and_in_the_end_aborts() -> None:
    run = collecting(POLICY.model_copy(update={"max_extensions": 1}))
    run, effects = after(run, update(20, ALICE), ev.ClockTicked(110))
    assert (run.phase, run.deadline_s, effects[1:]) == (Phase.COLLECTING, 210, ())
    run, effects = after(run, ev.ClockTicked(210))
    assert (run.phase, run.outcome) == (Phase.ENDED, Outcome.ABORTED)
    assert [type(effect) for effect in effects] == [ev.Abandon, ev.EndRun]


def test_a_missed_quorum_may_skip_the_round_and_keeps_the_version() -> None:
    run = collecting(POLICY.model_copy(update={"on_missed_quorum": "skip"}))
    run, effects = after(run, update(20, ALICE), ev.ClockTicked(110))
    assert (run.phase, run.version, run.receipts) == (Phase.WAITING, 0, ())
    assert effects[-1] == ev.Abandon(RoundNumber(1), "1 of 2 updates at the deadline")


def test_a_missed_quorum_may_abort_the_run() -> None:
    run, effects = after(collecting(POLICY.model_copy(update={"on_missed_quorum": "abort"})), ev.ClockTicked(110))
    assert (run.phase, run.outcome) == (Phase.ENDED, Outcome.ABORTED)
    assert [type(effect) for effect in effects] == [ev.Abandon, ev.EndRun]


def test_a_skipped_last_round_ends_the_run() -> None:
    run = collecting(POLICY.model_copy(update={"on_missed_quorum": "skip"}), rounds=1)
    run, effects = after(run, ev.ClockTicked(110))
    assert (run.phase, run.outcome) == (Phase.ENDED, Outcome.COMPLETED)
    assert [type(effect) for effect in effects] == [ev.Abandon, ev.EndRun]


def averaged(run: Run, at_s: float, digest: str = "d1") -> tuple[Run, tuple[ev.Effect, ...]]:
    run, _ = after(run, update(at_s, ALICE, run.round, run.version), update(at_s, BOB, run.round, run.version))
    run, _ = after(run, update(at_s, CAROL, run.round, run.version))
    return step(run, ev.ModelAveraged(at_s + 1, run.round, Digest(digest)))


def test_a_published_version_is_evaluated_when_due() -> None:
    run, effects = averaged(collecting(), 20)
    assert (run.phase, run.version, run.model_digest) == (Phase.WAITING, 1, "d1")
    assert isinstance(effects[0], ev.Publish)
    run, _ = after(run, seen(30, ALICE, BOB, CAROL))
    run, _ = averaged(run, 40, "d2")
    assert (run.phase, run.version) == (Phase.EVALUATING, 2)


def test_averaging_that_is_reported_twice_publishes_once() -> None:
    run, _ = averaged(collecting(), 20)
    again, effects = step(run, ev.ModelAveraged(22, RoundNumber(1), Digest("d1")))
    assert (again, effects) == (run, ())
    with pytest.raises(RoundClosed):
        step(run, ev.ModelAveraged(22, RoundNumber(1), Digest("other")))


def test_the_last_version_is_evaluated_and_then_the_run_is_over() -> None:
    run, _ = averaged(collecting(rounds=1), 20)
    assert run.phase is Phase.EVALUATING
    run, _ = after(run, seen(22, ALICE, BOB, CAROL), evaluation(23, ALICE, 1), evaluation(24, BOB, 1))
    run, effects = after(run, evaluation(25, CAROL, 1))
    assert (run.phase, run.outcome) == (Phase.ENDED, Outcome.COMPLETED)
    assert [type(effect) for effect in effects] == [ev.RecordEvaluation, ev.EndRun]


def test_an_evaluation_ends_at_its_deadline_and_the_silent_are_not_waited_for_again() -> None:
    run, _ = averaged(collecting(rounds=1), 20)
    run, _ = after(run, seen(22, ALICE, BOB, CAROL), evaluation(23, ALICE, 1), ev.ClockTicked(71))
    assert (run.phase, run.roster) == (Phase.ENDED, (ALICE,))


def test_an_evaluation_does_not_wait_for_who_lost_its_place() -> None:
    run, _ = averaged(collecting(rounds=1), 20)
    run, _ = after(run, seen(22, ALICE, BOB, CAROL), evaluation(23, ALICE, 1), evaluation(24, BOB, 1))
    run, _ = after(run, ev.PlaceLost(30, CAROL, "lease expired", permanent=False))
    assert run.phase is Phase.ENDED


def test_a_score_of_another_version_is_refused() -> None:
    run, _ = averaged(collecting(rounds=1), 20)
    run, _ = after(run, seen(22, ALICE))
    with pytest.raises(LeaseLost):
        step(run, evaluation(23, ALICE, 0))


def test_a_lost_place_is_free_within_the_same_round() -> None:
    run, _ = after(collecting(), ev.PlaceLost(20, BOB, "lease expired", permanent=False), seen(21, DAVE))
    assert run.active == (ALICE, CAROL, DAVE)


def test_a_client_that_comes_back_gets_its_place_again_but_not_for_ever() -> None:
    run = collecting()
    for attempt in range(MAX_SLOTS_LOST):
        assert BOB in run.active
        lost = ev.PlaceLost(20 + attempt, BOB, "out of memory", permanent=False)
        run, _ = after(run, lost, seen(20.5 + attempt, BOB))
    assert BOB not in run.active


def test_a_client_that_has_lost_its_places_has_new_ones_when_the_deadline_is_extended() -> None:
    """Its disk may have been full for a moment; without it the round would wait in vain, and the run would be aborted."""
    run = collecting()
    for extension in range(2):
        deadline_s = run.deadline_s or 0.0
        for attempt in range(MAX_SLOTS_LOST):
            assert BOB in run.active
            at_s = deadline_s - 5 + attempt
            lost = ev.PlaceLost(at_s, BOB, "STORAGE_FULL", permanent=False)
            run, _ = after(run, lost, seen(at_s + 0.5, BOB))
        run, _ = after(run, seen(deadline_s - 1, BOB))
        assert BOB not in run.active, "not for ever"
        run, _ = after(run, ev.ClockTicked(deadline_s), seen(deadline_s, BOB))
        assert run.extensions == extension + 1
    assert BOB in run.active


def test_a_client_that_cannot_take_part_is_left_out_until_it_says_hello_again() -> None:
    run, _ = after(collecting(), ev.PlaceLost(20, BOB, "EMBEDDING_MISMATCH", permanent=True), seen(21, BOB))
    assert BOB not in run.active
    run, _ = after(run, ev.ClientReturned(22, BOB), seen(23, BOB))
    assert BOB in run.active


def test_a_latecomer_has_no_place_while_none_is_free() -> None:
    run, _ = after(collecting(), seen(20, DAVE))
    assert DAVE not in run.cohort
    with pytest.raises(LeaseLost):
        step(run, update(21, DAVE))


def test_a_finished_update_counts_though_its_lease_ran_out() -> None:
    run, _ = after(collecting(), ev.PlaceLost(20, BOB, "lease expired", permanent=False), update(30, BOB))
    assert [receipt.client for receipt in run.receipts] == [BOB]


def test_a_duplicate_update_changes_nothing_and_another_one_is_refused() -> None:
    run, _ = after(collecting(), update(20, ALICE))
    assert step(run, update(21, ALICE)) == (run, ())
    with pytest.raises(AlreadyCommitted):
        step(run, update(22, ALICE, digest="other"))


def test_a_late_update_is_refused() -> None:
    run, _ = averaged(collecting(), 20)
    with pytest.raises(RoundClosed):
        step(run, update(30, DAVE))


def test_update_for_another_round_is_refused() -> None:
    with pytest.raises(RoundClosed):
        step(collecting(), update(20, ALICE, round_number=9))


def test_update_on_another_base_is_refused() -> None:
    with pytest.raises(WrongBase):
        step(collecting(), update(20, ALICE, base=5))


def test_cancelling_abandons_the_open_round_on_record() -> None:
    run, effects = after(collecting(), update(20, ALICE), ev.RunCancelled(21, "wrong data"))
    assert (run.phase, run.outcome, run.reason) == (Phase.ENDED, Outcome.CANCELLED, "wrong data")
    assert effects[1:] == (ev.Abandon(RoundNumber(1), "wrong data"), ev.EndRun("cancelled", "wrong data"))
    assert step(run, ev.RunCancelled(22, "again")) == (run, ())
    with pytest.raises(WrongPhase):
        step(run, ev.RunStarted(23))


def test_a_corrupt_update_costs_the_round_and_a_corrupt_base_the_run() -> None:
    run, _ = after(collecting(), update(20, ALICE), update(20, BOB), update(20, CAROL))
    next_run, effects = step(run, ev.AveragingFailed(21, RoundNumber(1), "corrupt", base_lost=False))
    assert (next_run.phase, effects) == (Phase.WAITING, (ev.Abandon(RoundNumber(1), "corrupt"),))
    ended, _ = step(run, ev.AveragingFailed(21, RoundNumber(1), "corrupt", base_lost=True))
    assert ended.outcome is Outcome.ABORTED


def test_after_a_restart_deadlines_begin_anew() -> None:
    run, _ = after(collecting(), update(20, ALICE), update(21, BOB), ev.CoordinatorStarted(1_000))
    assert (run.deadline_s, run.quorum_s) == (1_100, 1_000)


def test_refusals_of_one_client_in_one_round_are_noted_a_few_times_only() -> None:
    run = collecting()
    for number in range(50):
        run, _ = step(run, ev.UpdateRefused(20 + number, RoundNumber(1), ALICE, "NOT_FINITE", "NaN"))
    assert len(run.refusals) == 5


def test_a_revoked_member_that_has_delivered_counts_no_more_and_its_place_is_free() -> None:
    run, effects = after(collecting(), update(20, ALICE), update(21, BOB), ev.MemberRevoked(22, ALICE))
    assert effects[-1] == ev.WithdrawReceipt(RoundNumber(1), ALICE)
    assert [receipt.client for receipt in run.receipts] == [BOB]
    assert run.quorum_s is None, "one update is no quorum any more"
    run, _ = after(run, seen(23, DAVE))
    assert run.active == (CAROL, DAVE)
    with pytest.raises(LeaseLost):
        step(run, update(24, ALICE))


def test_a_revocation_after_averaging_has_begun_changes_nothing_of_this_round() -> None:
    run, _ = after(collecting(), update(20, ALICE), update(21, BOB), update(22, CAROL))
    assert run.phase is Phase.AGGREGATING
    run, effects = after(run, ev.MemberRevoked(23, ALICE), ev.ModelAveraged(24, RoundNumber(1), Digest("d1")))
    assert [receipt.client for receipt in effects[0].receipts] == [ALICE, BOB, CAROL]  # type: ignore[union-attr]
    run, _ = after(run, seen(25, ALICE, BOB, CAROL))
    assert ALICE not in run.cohort


def test_a_revoked_member_is_not_waited_for_in_an_evaluation() -> None:
    run, _ = after(a_run(), ev.RunStarted(0), seen(1, ALICE, BOB, CAROL), seen(1, ALICE, BOB, CAROL))
    run, _ = after(run, evaluation(2, ALICE, 0), evaluation(2, BOB, 0), ev.MemberRevoked(3, CAROL))
    assert run.phase is Phase.WAITING


def test_a_revocation_is_repeatable_and_means_nothing_to_a_run_the_member_has_no_part_in() -> None:
    run, _ = after(collecting(), update(20, ALICE), ev.MemberRevoked(22, ALICE))
    assert step(run, ev.MemberRevoked(23, ALICE)) == (run, ())
    assert step(run, ev.MemberRevoked(23, DAVE)) == (run, ())


def test_a_member_that_was_invited_again_may_take_part_again() -> None:
    run, _ = after(collecting(), update(20, ALICE), ev.MemberRevoked(22, ALICE), ev.ClientReturned(30, ALICE))
    run, effects = after(run, seen(31, ALICE), update(32, ALICE, digest="new"))
    assert effects == (ev.RecordReceipt(RoundNumber(1), ev.Receipt(ALICE, Digest("new"), 10)),)


def test_fairness_aware_weights_are_fixed_when_averaging_begins_and_the_standing_moves_when_the_model_is_published() -> (
    None
):
    run = replace(collecting(), aggregation=Aggregation(weighting="adaptive", fairness=5.0))
    distances = {ALICE: 0.2, BOB: 0.6, CAROL: None}
    for client, distance in distances.items():
        arrived = update(20, client)
        run, effects = after(run, replace(arrived, receipt=replace(arrived.receipt, distance=distance)))
    average = effects[-1]
    assert isinstance(average, ev.Average)
    assert average.weights[0] < average.weights[2] < average.weights[1]
    assert run.fairness_history == ()
    moments = (Digest("m"), Digest("v"))
    run, effects = after(run, ev.ModelAveraged(30, RoundNumber(1), Digest("d1"), moments))
    assert effects[0] == ev.Publish(
        RoundNumber(1), ModelVersion(1), Digest("d1"), average.receipts, moments, average.weights
    )
    assert run.fairness_history == ((ALICE, 0.2), (BOB, 0.6), (CAROL, 0.4))


def test_a_round_whose_averaging_failed_leaves_the_standing_as_it_was() -> None:
    run = replace(collecting(), aggregation=Aggregation(weighting="agnostic"))
    run, _ = after(run, update(20, ALICE), update(21, BOB), update(22, CAROL))
    run, _ = after(run, ev.AveragingFailed(30, RoundNumber(1), "corrupt", base_lost=False))
    assert run.fairness_history == ()


def test_facts_written_before_there_were_distances_and_moments_are_read_as_none() -> None:
    receipt = {"client": "alice", "digest": "u", "examples": 10}
    facts = {"at_s": 1.0, "round": 1, "base_version": 0, "receipt": receipt}
    arrived = ev.event_from_facts("UpdateArrived", facts)
    assert isinstance(arrived, ev.UpdateArrived)
    assert arrived.receipt.distance is None
    averaged = ev.event_from_facts("ModelAveraged", {"at_s": 1.0, "round": 1, "digest": "d"})
    assert averaged == ev.ModelAveraged(1.0, RoundNumber(1), Digest("d"), ())


def test_a_client_that_keeps_its_scores_has_answered_the_evaluation() -> None:
    run, _ = after(a_run(), ev.RunStarted(0), seen(1, ALICE, BOB, CAROL), seen(2, ALICE, BOB, CAROL))
    name, group, reason = ALICE, GroupName(ALICE), NotReported.TOO_FEW_QUESTIONS
    kept = ev.Score(name, group, GroupRole.TRAIN, run.version, None, None, None, 0, reason)
    run, effects = after(run, ev.EvaluationArrived(3, kept))
    assert (run.reported, effects) == ((ALICE,), (ev.RecordEvaluation(kept),))
    assert after(run, ev.EvaluationArrived(4, kept)) == (run, ())
    run, _ = after(run, evaluation(5, BOB, 0), evaluation(6, CAROL, 0))
    assert (run.phase, run.evaluated) == (Phase.WAITING, ModelVersion(0))


def test_facts_of_a_score_written_before_scores_could_be_kept_are_read_as_reported() -> None:
    facts = ev.event_to_facts(evaluation(1.0, ALICE, 0))
    del facts["score"]["not_reported"]
    assert ev.event_from_facts("EvaluationArrived", facts) == evaluation(1.0, ALICE, 0)


def test_a_new_run_is_empty_and_the_end_of_a_round_empties_it_again() -> None:
    run = a_run()
    assert (run.phase, run.version, run.round, run.since_s, run.paused) == (Phase.CREATED, 0, 0, 0.0, False)
    assert (run.slots, run.extensions, run.candidates, run.limits_members) == (0, 0, 0, False)
    assert (run.roster, run.cohort, run.receipts, run.away, run.losses, run.excluded) == ((), (), (), (), (), ())
    assert (run.reported, run.refusals, run.fairness_history, run.rollouts, run.reason) == ((), (), (), "", "")
    assert (run.gathered_s, run.quorum_s, run.deadline_s, run.evaluated, run.outcome, run.rewards) == (None,) * 6
    worked, _ = after(collecting(), update(20, ALICE), update(21, BOB), ev.PlaceLost(22, CAROL, "gone", permanent=True))
    full = replace(worked, gathered_s=1.0, extensions=2, reported=(DAVE,), rollouts="d", candidates=7)
    kept = replace(run, since_s=full.since_s, round=full.round, phase=full.phase, roster=full.roster)
    assert full.cleared() == replace(kept, excluded=full.excluded, evaluated=full.evaluated)
