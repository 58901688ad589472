"""The round machine: every decision about a run, as one pure function of state and event.

Each line of the table holds the phase, the event with its condition, the next phase, and the effects.

    CREATED      --RunStarted-->                              WAITING
    any but CREATED, ENDED --ClientsJoined-->                 the same     (the roster grows)
    WAITING      --ClientsSeen, enough, first time-->         EVALUATING   (version 0)
    WAITING      --ClientsSeen, enough, not paused-->         COLLECTING   OpenRound
    WAITING      --RolloutsAsked, not paused-->               COLLECTING   OpenRound    (a run that asks for rewards)
    COLLECTING   --ClientsSeen, a slot is free-->             COLLECTING   (the slot is assigned)
    COLLECTING   --ClientsSeen, nobody else, quorum-->        AGGREGATING  Average
    COLLECTING   --UpdateArrived, slots left-->               COLLECTING   RecordReceipt
    COLLECTING   --UpdateArrived, cohort complete-->          AGGREGATING  RecordReceipt, Average
    COLLECTING   --MemberRevoked, after its update-->         COLLECTING   WithdrawReceipt (the slot is free again)
    COLLECTING   --ClockTicked, quorum and grace over-->      AGGREGATING  Average
    COLLECTING   --ClockTicked, deadline, quorum-->           AGGREGATING  Average
    COLLECTING   --ClockTicked, deadline, no quorum-->
                     extend: COLLECTING | skip: see below, Abandon | abort: ENDED, Abandon, EndRun
    AGGREGATING  --ModelAveraged-->                           see below    Publish
    AGGREGATING  --AveragingFailed-->                         see below    Abandon; ENDED, EndRun as well if the base is lost
    EVALUATING   --EvaluationArrived-->                       EVALUATING   RecordEvaluation
    EVALUATING   --all scored, or ClockTicked, deadline-->    see below
    WAITING      --ClientsSeen, the rounds are done-->        KEYING       OpenRound    (the closing round, if the run has one)
    WAITING      --ClockTicked, nobody for it-->              ENDED        EndRun
    any but ENDED --RunCancelled-->                           ENDED        Abandon if a round is open, EndRun
    ENDED        --RunArchived, RunUnarchived-->              ENDED        (only `archived` changes)

"See below" means: after a round or an evaluation the run is EVALUATING if an evaluation of the version is due. Otherwise
the run is WAITING, or, after the last round, ENDED (EndRun). After the evaluation of the last version, a run that closes is
WAITING for its closing round; "see below" means ENDED there.
A slot is the right of one client in the cohort to do the round's task. The base is the model version that the round trains
from.
"Enough" means: target_clients are idle, or min_clients have been idle for gather_s, or min_clients are idle and nobody else
can come. Before the first evaluation, target_clients are enough only if at least as many clients have been seen as there are
groups in the run spec. The quorum is min_clients receipts.

In a run with private rounds, a round has more phases: private.py has their table.

A run that asks for rewards has no evaluations, and batches of rollouts (generated texts) open its rounds. Its clients take
slots as they connect, clients of held-out groups too. In such a run an update is one client's rewards, and a version is the
aggregate of all clients' rewards.

If an event is not allowed, `step` raises an error and the state stays as it was. If an identical event is repeated, `step`
returns (state, ()).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import assert_never

from pluralllm.common.errors.tree import (
    AlreadyCommitted,
    LeaseLost,
    RoundClosed,
    RunNotEnded,
    WrongBase,
    WrongPhase,
)
from pluralllm.common.words.ids import ClientId, ModelVersion, RoundNumber
from pluralllm.common.words.private_rounds import MAX_MEMBERS
from pluralllm.common.words.reward_weights import remember, weigh_groups
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds import private
from pluralllm.server.rounds.clipping import clip_scales
from pluralllm.server.rounds.cohort import draw_cohort
from pluralllm.server.rounds.endings import Step, abandon, advance, complete, end, open_evaluation
from pluralllm.server.rounds.looking import willing
from pluralllm.server.rounds.sorted_clients import holds, inserted, receipt_of, removed, with_receipt, without_client
from pluralllm.server.rounds.state import EXCHANGING, Outcome, Phase, Run
from pluralllm.server.rounds.weighting import FairnessHistory, shares_of, weigh

MAX_REFUSALS_KEPT = 20
MAX_REFUSALS_PER_CLIENT = 5  # in one round: a hostile client must not fill the log


def step(run: Run, event: ev.Event) -> Step:
    """Returns the run's next state, and the effects in the order in which the caller must carry them out.

    Raises a subclass of Refused for an event that the state does not allow.
    """
    match event:
        case ev.RunStarted():
            return _start(run, event)
        case ev.RunPaused() | ev.RunResumed():
            return _pause(run, event)
        case ev.RunCancelled():
            return _cancel(run, event)
        case ev.RunArchived() | ev.RunUnarchived():
            return _archive(run, event), ()
        case ev.CoordinatorStarted():
            return _restart_deadlines(run, event.at_s), ()
        case ev.ClientsJoined():
            return _join(run, event), ()
        case ev.ClientsSeen():
            return _meet(run, event)
        case ev.RolloutsAsked():
            return _ask(run, event)
        case ev.UpdateArrived():
            return _accept(run, event)
        case ev.UpdateRefused():
            return _record_refusal(run, event), ()
        case ev.PlaceLost():
            return _lose(run, event)
        case ev.ClientReturned():
            return _readmit(run, event), ()
        case ev.MemberRevoked():
            return _revoke(run, event)
        case ev.EvaluationArrived():
            return _score(run, event)
        case ev.ModelAveraged():
            return _publish(run, event)
        case ev.AveragingFailed():
            return _give_up(run, event)
        case (
            ev.KeysArrived()
            | ev.SharesArrived()
            | ev.ComplaintArrived()
            | ev.ConfirmationArrived()
            | ev.RevealArrived()
        ):
            return private.accept(run, event)
        case ev.DealtWrongly():
            return private.deal_wrongly(run, event)
        case ev.ClockTicked():
            return _tick(run, event.at_s)
        case _:
            assert_never(event)


# Operator


def _start(run: Run, event: ev.RunStarted) -> Step:
    if run.phase is Phase.ENDED:
        raise WrongPhase(run=run.id, phase=run.phase, wanted="started")
    if run.phase is not Phase.CREATED:
        return run, ()
    return replace(run, phase=Phase.WAITING, since_s=event.at_s), ()


def _pause(run: Run, event: ev.RunPaused | ev.RunResumed) -> Step:
    pause = isinstance(event, ev.RunPaused)
    if run.phase in (Phase.CREATED, Phase.ENDED):
        raise WrongPhase(run=run.id, phase=run.phase, wanted="paused" if pause else "resumed")
    if not pause and run.paused and run.waits_to_close:
        run = replace(run, deadline_s=event.at_s + run.policy.deadline_s)
    return (run if run.paused == pause else replace(run, paused=pause)), ()


def _cancel(run: Run, event: ev.RunCancelled) -> Step:
    if run.outcome is Outcome.CANCELLED:
        return run, ()
    if run.phase is Phase.ENDED:
        raise WrongPhase(run=run.id, phase=f"{run.phase} ({run.outcome})", wanted="cancelled")
    return end(run, event.at_s, Outcome.CANCELLED, event.reason)


def _archive(run: Run, event: ev.RunArchived | ev.RunUnarchived) -> Run:
    """Marks an ended run as archived, or takes the mark away.

    The mark is part of the run's log, as every command of an operator is. So restarts, backups, standbys and the replay of
    `verify` need no rule of their own for it.
    """
    archived = isinstance(event, ev.RunArchived)
    if archived and run.phase is not Phase.ENDED:
        raise RunNotEnded(run=run.id, phase=run.phase)
    return run if run.archived == archived else replace(run, archived=archived)


# Clients come, go, deliver


def _join(run: Run, event: ev.ClientsJoined) -> Run:
    """Adds newcomers to the roster (the clients that the run believes to be connected)."""
    if run.phase in (Phase.CREATED, Phase.ENDED):
        return run
    roster = tuple(sorted({*run.roster, *_without_excluded(run, event.clients)}))
    return run if roster == run.roster else replace(run, roster=roster)


def _meet(run: Run, event: ev.ClientsSeen) -> Step:
    """Adds idle clients to the roster, as `_join` does. Returns the next state and effects.

    A waiting run may then open a round or its first evaluation. In an open round the clients may get free slots. In an open
    evaluation each new client gets a slot.
    """
    if run.phase in (Phase.CREATED, Phase.ENDED):
        return run, ()
    trainers = _without_excluded(run, event.trainers)
    seen = (*trainers, *_without_excluded(run, event.held_out))
    if not set(seen) <= set(run.roster):
        run = replace(run, roster=tuple(sorted({*run.roster, *seen})))
    if run.phase is Phase.WAITING and not run.paused and run.rewards is None:
        return _gather(run, event, tuple(sorted(seen)) if run.waits_to_close else trainers)
    if run.phase is Phase.COLLECTING or run.phase in EXCHANGING:
        run = _fill_free_slots(run, trainers if run.rewards is None and not run.is_closing else seen)
        return _average(run, event.at_s) if event.nobody_else and run.has_all_it_can_get else (run, ())
    if run.phase is Phase.EVALUATING and (newcomers := willing(run, seen)):
        return _assign_slots(run, newcomers), ()
    return run, ()


def _without_excluded(run: Run, clients: tuple[ClientId, ...]) -> tuple[ClientId, ...]:
    if not run.excluded:
        return clients
    excluded = run.excluded_clients
    return tuple(client for client in clients if client not in excluded)


def _gather(run: Run, event: ev.ClientsSeen, clients: tuple[ClientId, ...]) -> Step:
    """Opens the first evaluation or the next round if enough of the clients that it is for are there. clients: sorted."""
    policy, at_s, roster_head = run.policy, event.at_s, event.roster_head
    if len(clients) < policy.min_clients:
        return (replace(run, gathered_s=None) if run.gathered_s is not None else run), ()
    if run.gathered_s is None:
        run = replace(run, gathered_s=at_s)
    all_are_there = len(clients) >= policy.target_clients and (
        run.evaluated is not None or len(run.roster) >= run.named_groups
    )
    if run.waits_to_close:
        all_are_there = set(run.roster) <= set(clients)
    if not all_are_there and not event.nobody_else and at_s < (run.gathered_s or 0.0) + policy.gather_s:
        return run, ()
    if run.evaluated is None:
        return open_evaluation(run, at_s), ()
    number = RoundNumber(run.round + 1)
    slots = MAX_MEMBERS if run.waits_to_close else policy.target_clients
    cohort = draw_cohort(run.seed, number, clients, slots)
    if run.private is not None:
        return private.open_round(run, at_s, cohort, roster_head) if roster_head else (run, ())
    opened = replace(
        run.cleared(),
        phase=Phase.COLLECTING,
        since_s=at_s,
        round=number,
        slots=len(cohort),
        cohort=cohort,
        deadline_s=at_s + policy.deadline_s,
    )
    return opened, (ev.OpenRound(number, run.version, cohort),)


def _ask(run: Run, event: ev.RolloutsAsked) -> Step:
    if run.rewards is None:
        raise WrongPhase(run=run.id, phase="a run that trains", wanted="asked for rewards")
    if run.rollouts == event.digest:
        return run, ()
    if run.phase is not Phase.WAITING or run.paused:
        phase = "paused" if run.paused else f"{run.phase}, round {run.round}"
        raise WrongPhase(run=run.id, phase=phase, wanted="asked for another batch of rewards now")
    number = RoundNumber(run.round + 1)
    opened = replace(
        run.cleared(),
        phase=Phase.COLLECTING,
        since_s=event.at_s,
        round=number,
        slots=run.policy.target_clients,
        deadline_s=event.at_s + run.policy.deadline_s,
        rollouts=event.digest,
        candidates=event.candidates,
    )
    return opened, (ev.OpenRound(number, run.version, (), event.digest),)


def _accept(run: Run, event: ev.UpdateArrived) -> Step:
    receipt = event.receipt
    committed = receipt_of(run.receipts, receipt.client)
    if event.round == run.round and committed is not None:
        if committed == receipt:
            return run, ()
        raise AlreadyCommitted(client=receipt.client, round=run.round, committed=committed.digest)
    if run.phase is not Phase.COLLECTING or event.round != run.round:
        raise RoundClosed(run=run.id, asked=event.round, current=run.round)
    if event.base_version != run.version:
        raise WrongBase(asked=str(event.base_version), current=str(run.version))
    if not holds(run.cohort, receipt.client) or run.is_excluded(receipt.client):
        raise LeaseLost(task=f"train-{receipt.client}")
    if run.private is not None:
        private.check_update(run, event)
    receipts = with_receipt(run.receipts, receipt)
    run = replace(run, receipts=receipts, away=removed(run.away, receipt.client))
    if run.quorum_s is None and len(receipts) >= run.quorum:
        run = replace(run, quorum_s=event.at_s)
    if run.private is not None:
        return private.after_update(run, event)
    recorded = ev.RecordReceipt(run.round, receipt)
    if len(receipts) >= run.slots and run.quorum_s is not None:
        averaging, effects = _average(run, event.at_s)
        return averaging, (recorded, *effects)
    return run, (recorded,)


def _lose(run: Run, event: ev.PlaceLost) -> Step:
    if run.phase is Phase.ENDED:
        return run, ()
    without = _withdraw_slot(run, event)
    if without is not run and run.is_private_round:
        return private.after_loss(without, event)
    return (run, ()) if without is run else _close_evaluation_when_complete(without, event.at_s)


def _revoke(run: Run, event: ev.MemberRevoked) -> Step:
    if not holds(run.roster, event.client) and not holds(run.cohort, event.client):
        return run, ()
    effects: tuple[ev.Effect, ...] = ()
    if run.phase is Phase.COLLECTING and receipt_of(run.receipts, event.client) is not None:
        receipts = without_client(run.receipts, event.client)
        quorum_s = run.quorum_s if len(receipts) >= run.quorum else None
        run = replace(run, receipts=receipts, quorum_s=quorum_s)
        effects = (ev.WithdrawReceipt(run.round, event.client),)
    run = private.without_revoked(run, event.client)
    lost, following = _lose(run, ev.PlaceLost(event.at_s, event.client, "its membership was revoked", permanent=True))
    return lost, (*effects, *following)


# Rounds and evaluations end


def _tick(run: Run, at_s: float) -> Step:
    if run.phase is Phase.EVALUATING and run.deadline_s is not None and at_s >= run.deadline_s:
        # A client that has not answered leaves the roster until it is seen again.
        return advance(replace(run, evaluated=run.version, roster=run.reported), at_s)
    if run.waits_to_close and not run.paused and run.deadline_s is not None and at_s >= run.deadline_s:
        return complete(run, at_s, f"fewer than {run.policy.min_clients} clients were there for them")
    if run.phase in EXCHANGING:
        return private.tick(run, at_s)
    if run.phase is not Phase.COLLECTING or run.deadline_s is None:
        return run, ()
    if run.quorum_s is not None:
        over = at_s >= min(run.quorum_s + run.policy.grace_after_quorum_s, run.deadline_s)
        if not over:
            return run, ()
        if run.private is None:
            return _average(run, at_s)
        return private.end_collecting(run, at_s, run.deadline_s)
    if at_s < run.deadline_s:
        return run, ()
    reason = f"{len(run.receipts)} of {run.quorum} updates at the deadline"
    match run.policy.on_missed_quorum:
        case "extend" if not private.may_reach_quorum(run):
            return abandon(run, at_s, reason)
        case "extend" if run.extensions < run.policy.max_extensions:
            return replace(run, deadline_s=at_s + run.policy.deadline_s, extensions=run.extensions + 1), ()
        case "skip":
            return abandon(run, at_s, reason)
        case _ if run.is_closing:
            return abandon(run, at_s, reason)
        case _:
            return end(run, at_s, Outcome.ABORTED, f"round {run.round}: {reason}")


def _average(run: Run, at_s: float) -> Step:
    averaging = replace(run, phase=Phase.AGGREGATING, since_s=at_s, deadline_s=None)
    weights, _ = _weigh(run)
    return averaging, (ev.Average(run.round, run.version, run.receipts, weights, _scales(run, weights)),)


def _weigh(run: Run) -> tuple[tuple[float, ...], FairnessHistory]:
    if run.private is not None:  # the clients have weighted their updates, and the coordinator learns no weight
        return (), run.fairness_history
    if run.rewards is None:
        return weigh(run.receipts, run.aggregation, run.fairness_history, limits_members=run.limits_members)
    # The history includes the newest mean rewards, so that a group that is served badly now counts more now.
    means: dict[str, float | None] = {receipt.client: 1 - (receipt.distance or 0.0) for receipt in run.receipts}
    history = remember(run.rewards, means, run.fairness_history)
    fairness_history = tuple((ClientId(client), mean) for client, mean in history)
    return weigh_groups(run.rewards, list(means), history), fairness_history


def _scales(run: Run, weights: tuple[float, ...]) -> tuple[float, ...]:
    if not run.limits_members or run.private is not None:
        return ()
    shares = shares_of(run.receipts, run.aggregation, weights)
    return clip_scales(run.receipts, shares, at_median=run.aggregation.rule == "median_norm_clip")


def _publish(run: Run, event: ev.ModelAveraged) -> Step:
    if run.phase is not Phase.AGGREGATING or event.round != run.round:
        if event.round == run.round and event.digest == run.model_digest:
            return run, ()
        raise RoundClosed(run=run.id, asked=event.round, current=run.round)
    version = ModelVersion(run.version + 1)
    weights, fairness_history = _weigh(run)
    published = ev.Publish(
        run.round,
        version,
        event.digest,
        run.receipts,
        event.moments,
        event.chosen or weights,
        _scales(run, weights),
        event.transcript,
        event.tail,
    )
    run = replace(run, version=version, model_digest=event.digest, fairness_history=fairness_history)
    advanced, effects = advance(run, event.at_s)
    return advanced, (published, *effects)


def _give_up(run: Run, event: ev.AveragingFailed) -> Step:
    if run.phase is not Phase.AGGREGATING or run.round != event.round:
        return run, ()
    if event.base_lost:
        return end(run, event.at_s, Outcome.ABORTED, event.reason)
    return abandon(run, event.at_s, event.reason)


def _score(run: Run, event: ev.EvaluationArrived) -> Step:
    client = event.score.client
    if holds(run.reported, client) and event.score.version == run.version:
        return run, ()
    if run.phase is not Phase.EVALUATING or event.score.version != run.version or not holds(run.cohort, client):
        raise LeaseLost(task=f"evaluate-{client}")
    run = replace(run, reported=inserted(run.reported, client), away=removed(run.away, client))
    closed, effects = _close_evaluation_when_complete(run, event.at_s)
    return closed, (ev.RecordEvaluation(event.score), *effects)


def _close_evaluation_when_complete(run: Run, at_s: float) -> Step:
    if run.phase is not Phase.EVALUATING or run.active_count > 0:
        return run, ()
    if not run.reported or not set(run.roster) <= {*run.reported, *run.away}:
        return run, ()
    return advance(replace(run, evaluated=run.version), at_s)


def _restart_deadlines(run: Run, at_s: float) -> Run:
    policy = run.policy
    if run.phase in EXCHANGING:
        return replace(run, deadline_s=at_s + private.step_s(run))
    if run.phase is Phase.COLLECTING:
        return replace(run, deadline_s=at_s + policy.deadline_s, quorum_s=None if run.quorum_s is None else at_s)
    if run.phase is Phase.EVALUATING:
        return replace(run, deadline_s=at_s + policy.evaluation_deadline_s)
    if run.waits_to_close:
        run = replace(run, deadline_s=at_s + policy.deadline_s)
    return run if run.gathered_s is None else replace(run, gathered_s=None)


# Clients and slots


def _fill_free_slots(run: Run, clients: Sequence[ClientId]) -> Run:
    """Assigns the open round's free slots to clients that may take a slot, and returns the changed run.

    The run's seed decides which clients get the slots if there are more clients than slots.
    """
    if run.free_slots <= 0 or not (candidates := willing(run, clients)):
        return run
    return _assign_slots(run, draw_cohort(run.seed, run.round, candidates, run.free_slots))


def _assign_slots(run: Run, clients: Sequence[ClientId]) -> Run:
    """Gives each of the clients a slot in the cohort, and returns the changed run."""
    away = tuple(sorted(set(run.away) - set(clients)))
    return replace(run, cohort=tuple(sorted({*run.cohort, *clients})), away=away)


def _withdraw_slot(run: Run, event: ev.PlaceLost) -> Run:
    """Returns the run without the client's slot, or the very same `run` object if the event changes nothing.

    A client that had no slot leaves the roster (the clients that the run believes to be connected), because the client is gone.
    A client that fails permanently also leaves the roster, and is excluded from the run.
    """
    before = run
    had_slot = run.is_active(event.client)
    if had_slot:
        run = replace(run, away=inserted(run.away, event.client), losses=(*run.losses, event))
    if event.permanent and not run.is_excluded(event.client):
        run = replace(run, excluded=(*run.excluded, event))
    if event.permanent or not had_slot:
        run = replace(run, roster=removed(run.roster, event.client))
    return before if run == before else run


def _readmit(run: Run, event: ev.ClientReturned) -> Run:
    """Returns the run in which the client is no longer excluded, so that the client may take part again."""
    if not run.is_excluded(event.client):
        return run
    return replace(run, excluded=tuple(loss for loss in run.excluded if loss.client != event.client))


def _record_refusal(run: Run, event: ev.UpdateRefused) -> Run:
    """Adds the refusal of an update to the newest refusals, which the run keeps for people to see.

    A refusal that the run already keeps is ignored. Refusals of one client in a round beyond MAX_REFUSALS_PER_CLIENT are ignored,
    too.
    """
    of_this_client = sum(refusal.client == event.client and refusal.round == event.round for refusal in run.refusals)
    if event in run.refusals or of_this_client >= MAX_REFUSALS_PER_CLIENT:
        return run
    return replace(run, refusals=(*run.refusals, event)[-MAX_REFUSALS_KEPT:])
