"""The private part of the round machine: a round in which the coordinator learns the sum of the updates and no single one.

Each line of the table holds the phase, the event with its condition, the next phase, and the effects. All lines are of a run
whose spec has the table [private_rounds]; machine.py has every other line.

    WAITING      --ClientsSeen, enough, not paused-->             KEYING       OpenRound  (if the event names the roster's head)
    KEYING       --ClientsSeen, a slot is free-->                 KEYING       (the slot is assigned)
    KEYING       --KeysArrived, slots without keys left-->        KEYING       RecordMessage
    KEYING       --KeysArrived, every slot has keys-->            SHARING      RecordMessage, FixMembers
    KEYING       --ClockTicked, step over, quorum of keys-->      SHARING      FixMembers
    SHARING      --SharesArrived, members left-->                 SHARING      RecordMessage
    SHARING      --SharesArrived, every member has dealt-->       COLLECTING   RecordMessage, FixDealers
    SHARING      --ClockTicked, step over, quorum of dealers-->   COLLECTING   FixDealers
    COLLECTING   --UpdateArrived, dealers left-->                 COLLECTING   RecordReceipt, RecordMessage
    COLLECTING   --UpdateArrived, every dealer has delivered-->   CONFIRMING   RecordReceipt, RecordMessage, FixSum
    COLLECTING   --ComplaintArrived-->                            COLLECTING   RecordMessage, WithdrawReceipt of both members
    COLLECTING   --ComplaintArrived, too few members left-->      see below    RecordMessage, WithdrawReceipt, Abandon
    COLLECTING   --ClockTicked, quorum, grace or deadline over--> CONFIRMING   FixSum, WithdrawReceipt of who asks for more
    COLLECTING   --ClockTicked, deadline, too few for those who have delivered--> see below, Abandon
    CONFIRMING   --ConfirmationArrived, below the threshold-->    CONFIRMING   RecordMessage
    CONFIRMING   --ConfirmationArrived, the threshold's-->        UNMASKING    RecordMessage
    UNMASKING    --RevealArrived, a secret lacks shares-->        UNMASKING    RecordMessage
    UNMASKING    --RevealArrived, every secret has enough-->      AGGREGATING  RecordMessage, Average
    UNMASKING, AGGREGATING --DealtWrongly-->                      see below    Abandon (the dealer is excluded)
    SHARING, COLLECTING --ClockTicked, step over, extend, too few are left for a quorum--> see below, Abandon
    KEYING, SHARING --ClockTicked, step over, no quorum-->
                     extend: the same | extended often enough, skip: see below, Abandon | abort: ENDED, Abandon, EndRun
    CONFIRMING, UNMASKING --ClockTicked, step over-->
                     extended too seldom: the same | else see below, Abandon
    SHARING, COLLECTING --PlaceLost, MemberRevoked, nobody left to wait for, quorum--> as the last message

"See below" is that of machine.py: the run waits, evaluates or ends. A missed quorum in COLLECTING is as in machine.py, too.
A step is over step_s seconds after its phase began or was extended. Each phase counts its own extensions. The threshold is
words.private_rounds.threshold of the members; the quorum is the greater one of min_clients and the threshold, of keys, dealers
and updates alike: the sets only shrink, so that a smaller one would end without a quorum later.

A client that loses its slot in KEYING loses its keys' place, too. From SHARING on no slot is for another client: a member that
comes back takes its own. A dealer whose update is not in the sum confirms and reveals like the others. A revoked member is left
out until the sum is fixed, and stays in the sum afterwards: a sum that members have signed never changes.

The closing round is a private round like the others. All clients that are there are its members, those of held-out groups, too.
Nobody trains in it: each update is 0, and its version is the base version again. However it ends, the run has done its work, and
ends as completed.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import assert_never

from pluralllm.common.errors.private_rounds import WrongStep
from pluralllm.common.errors.tree import AlreadyCommitted, InvalidArgument, LeaseLost, RoundClosed
from pluralllm.common.words.ids import ClientId, Digest, RoundNumber
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.endings import Step, abandon, end
from pluralllm.server.rounds.sorted_clients import (
    Messages,
    Receipts,
    holds,
    receipt_of,
    removed,
    with_receipt,
    without_client,
)
from pluralllm.server.rounds.state import Outcome, Phase, Run


def open_round(run: Run, at_s: float, cohort: tuple[ClientId, ...], roster_head: str) -> Step:
    """Opens a private round, whose first step collects keys."""
    number = RoundNumber(run.round + 1)
    opened = replace(run.cleared(), round=number, slots=len(cohort), cohort=cohort, roster_head=roster_head)
    return _enter(opened, Phase.KEYING, at_s), (ev.OpenRound(number, run.version, cohort),)


def accept(run: Run, event: ev.MessageArrived) -> Step:
    """Takes a member's message. The same message again changes nothing.

    Raises RoundClosed if the message's round is not open; AlreadyCommitted if the member has sent another message; WrongStep if
    the message belongs to another phase; LeaseLost if the client is no member that may send it; InvalidArgument for a complaint
    about a client that has not dealt.
    """
    message = ev.SentMessage(event.client, event.digest)
    match event:
        case ev.KeysArrived():
            return _take_keys(run, event, message)
        case ev.SharesArrived():
            return _take_shares(run, event, replace(message, least=event.least))
        case ev.ComplaintArrived():
            return _take_complaint(run, event, replace(message, accused=event.dealer))
        case ev.ConfirmationArrived():
            return _take_confirmation(run, event, message)
        case ev.RevealArrived():
            return _take_reveal(run, event, message)
        case _:
            assert_never(event)


def _take_keys(run: Run, event: ev.KeysArrived, message: ev.SentMessage) -> Step:
    if _is_known(run, event, message, run.keyed, Phase.KEYING):
        return run, ()
    if not run.is_active(event.client):
        raise LeaseLost(task=f"train-{event.client}")
    run = replace(run, keyed=with_receipt(run.keyed, message))
    return _after(run, event, ev.RoundStep.KEYS, _fix_members(run, event.at_s) if _has_all_keys(run) else None)


def _take_shares(run: Run, event: ev.SharesArrived, message: ev.SentMessage) -> Step:
    if _is_known(run, event, message, run.dealt, Phase.SHARING):
        return run, ()
    _check_member(run, event.client, run.keyed)
    run = replace(run, dealt=with_receipt(run.dealt, message), away=removed(run.away, event.client))
    return _after(run, event, ev.RoundStep.SHARES, _close_if_complete(run, event.at_s))


def _take_complaint(run: Run, event: ev.ComplaintArrived, message: ev.SentMessage) -> Step:
    if _is_known(run, event, message, run.complained, Phase.COLLECTING):
        return run, ()
    _check_member(run, event.client, run.dealt)
    if event.dealer == event.client or receipt_of(run.dealt, event.dealer) is None:
        raise InvalidArgument(field="complaint.dealer", problem=f"{event.dealer} is not another dealer of this round")
    run = replace(run, complained=with_receipt(run.complained, message))
    withdrawn = [receipt for receipt in run.receipts if receipt.client in (event.client, event.dealer)]
    effects = [ev.WithdrawReceipt(run.round, receipt.client) for receipt in withdrawn]
    receipts = tuple(receipt for receipt in run.receipts if receipt not in withdrawn)
    run = replace(run, receipts=receipts, quorum_s=run.quorum_s if len(receipts) >= run.quorum else None)
    run = _exclude_if_accused_by_many(run, event)
    step = _close_if_complete(run, event.at_s)
    if (left := len(run.dealt) - len(run.outside)) < run.quorum:
        step = abandon(run, event.at_s, f"complaints about boxes leave {left} of the {run.quorum} members for a sum")
    closed, following = _after(run, event, ev.RoundStep.COMPLAINT, step)
    return closed, (following[0], *effects, *following[1:])


def _take_confirmation(run: Run, event: ev.ConfirmationArrived, message: ev.SentMessage) -> Step:
    if _is_known(run, event, message, run.confirmed, Phase.CONFIRMING):
        return run, ()
    _check_dealer(run, event.client)
    run = replace(run, confirmed=with_receipt(run.confirmed, message), away=removed(run.away, event.client))
    enough = len(run.confirmed) >= run.threshold
    step = (_enter(run, Phase.UNMASKING, event.at_s), ()) if enough else None
    return _after(run, event, ev.RoundStep.CONFIRMATION, step)


def _take_reveal(run: Run, event: ev.RevealArrived, message: ev.SentMessage) -> Step:
    if _is_known(run, event, message, run.revealed, Phase.UNMASKING):
        return run, ()
    _check_dealer(run, event.client)
    run = replace(run, revealed=with_receipt(run.revealed, message), away=removed(run.away, event.client))
    step: Step | None = None
    if _are_revealed(run):
        away = tuple(client for client in run.away if not run.has_delivered(client))  # as in a plain round
        averaging = replace(run, phase=Phase.AGGREGATING, since_s=event.at_s, deadline_s=None, away=away)
        step = averaging, (ev.Average(run.round, run.version, run.receipts),)
    return _after(run, event, ev.RoundStep.REVEAL, step)


def _are_revealed(run: Run) -> bool:
    """Returns whether each dealer's secret has as many shares as it needs. Who complains of a dealer has no share of it."""
    revealing = [sent for sent in run.complained if receipt_of(run.revealed, sent.client) is not None]
    missing = Counter(sent.accused for sent in revealing)
    return len(run.revealed) - max(missing.values(), default=0) >= run.threshold


def _is_known(run: Run, event: ev.MessageArrived, message: ev.SentMessage, sent: Messages, phase: Phase) -> bool:
    """Returns whether the message is on record. If it is not, it must be one that the round waits for in this phase."""
    earlier = receipt_of(sent, event.client) if event.round == run.round else None
    if earlier is not None and earlier != message:
        raise AlreadyCommitted(client=event.client, round=event.round, committed=earlier.digest)
    if earlier is not None:
        return True
    if event.round != run.round or not run.is_private_round:
        raise RoundClosed(run=run.id, asked=event.round, current=run.round)
    if run.phase is not phase:
        raise WrongStep(problem=f"the round is {run.phase}, and the message is for {phase}")
    return False


def _check_member(run: Run, client: ClientId, holders: Messages) -> None:
    if receipt_of(holders, client) is None or run.is_excluded(client):
        raise LeaseLost(task=f"train-{client}")


def _check_dealer(run: Run, client: ClientId) -> None:
    """Checks that the client has dealt. A dealer that a complaint has excluded from later rounds answers in this one."""
    if receipt_of(run.dealt, client) is None:
        raise LeaseLost(task=f"train-{client}")


def _after(run: Run, event: ev.MessageArrived, step: ev.RoundStep, following: Step | None) -> Step:
    """Returns the step that a message has led to. following: the step after the run with the message; None if it stays."""
    closed, effects = (run, ()) if following is None else following
    return closed, (ev.RecordMessage(event.round, step, event.client, event.digest), *effects)


def _exclude_if_accused_by_many(run: Run, event: ev.ComplaintArrived) -> Run:
    """Excludes a dealer of whom more members complain than may lie. The dealer keeps its slot until the round's end."""
    assert run.private is not None  # only a private round has complaints
    complaints = sum(sent.accused == event.dealer for sent in run.complained)
    if complaints <= run.private.colluders:
        return run
    return _exclude(run, event.at_s, event.dealer, f"DEALT_WRONGLY: {complaints} members complain of its boxes")


def _exclude(run: Run, at_s: float, client: ClientId, reason: str) -> Run:
    if run.is_excluded(client):
        return run
    loss = ev.PlaceLost(at_s, client, reason, permanent=True)
    return replace(run, excluded=(*run.excluded, loss), roster=removed(run.roster, client))


# Updates


def check_update(run: Run, event: ev.UpdateArrived) -> None:
    """Checks an update of the open private round.

    The members confirm a sum only if each update in it has its member's statement for which dealers it is masked. Raises
    LeaseLost if the update may not be in the sum; InvalidArgument without a statement.
    """
    client = event.receipt.client
    if receipt_of(run.dealt, client) is None or client in run.outside:
        raise LeaseLost(task=f"train-{client}")
    if not event.statement:
        raise InvalidArgument(
            field="statement", problem=f"{client} has not signed for which dealers its update is masked"
        )


def may_reach_quorum(run: Run) -> bool:
    """Returns whether the open phase can still reach its quorum. No new client joins a private round after its first step.

    A member that is excluded from the run may come back, but so late that another round serves better. Members that ask for a
    larger sum than all who are left can make deliver nothing: a member that they have not pinned may have left the round.
    """
    match run.phase:
        case Phase.SHARING:
            left = {*run.members} - run.excluded_clients | {*run.dealers}
        case Phase.COLLECTING if run.private is not None:
            receipts = (receipt.client for receipt in run.receipts)
            left = {*run.dealers} - run.outside - run.excluded_clients | {*receipts}
            left = _largest_sum(run, left) if run.gives_up_small_sums else left
        case _:
            return True
    return len(left) >= run.quorum


def after_update(run: Run, event: ev.UpdateArrived) -> Step:
    """Returns the step after an update, which `run` has taken already. The last update fixes the sum."""
    closed, following = _close_if_complete(run, event.at_s) or (run, ())
    statement = ev.RecordMessage(run.round, ev.RoundStep.UPDATE, event.receipt.client, Digest(event.statement))
    return closed, (ev.RecordReceipt(run.round, event.receipt), statement, *following)


# Members are lost


def after_loss(run: Run, event: ev.PlaceLost) -> Step:
    """Returns the step after a client has lost its slot in the open private round. `run` is without the slot already."""
    if run.phase is Phase.KEYING:
        return replace(run, keyed=without_client(run.keyed, event.client)), ()
    return _close_if_complete(run, event.at_s) or (run, ())


def without_revoked(run: Run, client: ClientId) -> Run:
    """Returns the run without the shares that a revoked member has dealt, if the dealers are not fixed yet."""
    return replace(run, dealt=without_client(run.dealt, client)) if run.phase is Phase.SHARING else run


# Steps end


def tick(run: Run, at_s: float) -> Step:
    """Ends the open step if its time is over: with a quorum the next one begins, else the step is extended or the round ends.

    The run is in one of the phases EXCHANGING.
    """
    assert run.deadline_s is not None  # each of these steps has one
    if at_s < run.deadline_s:
        return run, ()
    if run.phase is Phase.KEYING and len(run.keyed) >= run.quorum:
        return _fix_members(run, at_s)
    if run.phase is Phase.SHARING and len(run.dealt) >= run.quorum:
        return _fix_dealers(run, at_s)
    begins = run.phase in (Phase.KEYING, Phase.SHARING)
    missed = run.policy.on_missed_quorum if begins else "extend"
    if missed == "extend" and run.extensions < run.policy.max_extensions and may_reach_quorum(run):
        return replace(run, deadline_s=at_s + step_s(run), extensions=run.extensions + 1), ()
    reason = f"{len(run.sent)} of {run.quorum if begins else run.threshold} members while {run.phase}"
    if missed == "abort" and not run.is_closing:
        return end(run, at_s, Outcome.ABORTED, f"round {run.round}: {reason}")
    return abandon(run, at_s, reason)


def step_s(run: Run) -> float:
    """Returns the time in seconds for the open step of a private round."""
    assert run.private is not None  # only a private round has these phases
    return run.policy.deadline_s if run.phase is Phase.COLLECTING else run.private.step_s


def fix_sum(run: Run, at_s: float) -> Step:
    """Fixes the sum: the updates whose receipts the run has now, but for those of members that ask for a larger sum.

    No honest member confirms a sum that is smaller than one of its members asks for, so such a member takes itself out.
    """
    kept = _large_enough(run)
    if len(kept) < run.quorum:
        reason = f"{len(run.receipts)} updates are fewer than their members ask for in a sum"
        return abandon(run, at_s, reason)
    withdrawn = (ev.WithdrawReceipt(run.round, one.client) for one in run.receipts if one not in kept)
    run = replace(run, receipts=kept)
    return _enter(run, Phase.CONFIRMING, at_s), (*withdrawn, ev.FixSum(run.round, kept))


def end_collecting(run: Run, at_s: float, deadline_s: float) -> Step:
    """Fixes the sum after the grace. If its members ask for a larger sum, the round waits for further updates to the deadline."""
    is_enough = len(_large_enough(run)) >= run.quorum
    return fix_sum(run, at_s) if is_enough or at_s >= deadline_s else (run, ())


def _large_enough(run: Run) -> Receipts:
    """Returns the receipts of the largest sum that has at least as many updates as each of its members asks for."""
    kept = _largest_sum(run, {receipt.client for receipt in run.receipts})
    return tuple(receipt for receipt in run.receipts if receipt.client in kept)


def _largest_sum(run: Run, clients: set[ClientId]) -> set[ClientId]:
    """Returns the members of the largest sum of these clients' updates that no member of it calls too small."""
    least = {sent.client: sent.least for sent in run.dealt}
    while staying := {client for client in clients if least[client] <= len(clients)}:
        if staying == clients:
            break
        clients = staying
    return staying


def deal_wrongly(run: Run, event: ev.DealtWrongly) -> Step:
    """Abandons the round and excludes the dealer until its next Hello."""
    if run.private is None or event.round != run.round or run.phase not in (Phase.UNMASKING, Phase.AGGREGATING):
        return run, ()
    reason = f"DEALT_WRONGLY: {event.reason}"
    return abandon(_exclude(run, event.at_s, event.dealer, reason), event.at_s, f"{event.dealer}: {reason}")


def _has_all_keys(run: Run) -> bool:
    return len(run.keyed) >= max(run.slots, run.quorum)


def _close_if_complete(run: Run, at_s: float) -> Step | None:
    """Returns the step into the next phase if no message is to come any more and there is a quorum, else None."""
    if run.phase is Phase.SHARING and len(run.dealt) >= run.quorum and not any(_missing(run, run.keyed, run.dealers)):
        return _fix_dealers(run, at_s)
    if run.phase is not Phase.COLLECTING or run.quorum_s is None:
        return None
    done = (*run.outside, *(receipt.client for receipt in run.receipts))
    return None if any(_missing(run, run.dealt, done)) else fix_sum(run, at_s)


def _missing(run: Run, holders: Messages, done: tuple[ClientId, ...]) -> Iterator[ClientId]:
    """Yields the holders that are not done. Those that are excluded from the run do not come any more."""
    left_out = {*done, *run.excluded_clients}
    return (sent.client for sent in holders if sent.client not in left_out)


def _fix_members(run: Run, at_s: float) -> Step:
    run = _without(run, at_s, run.members, "has sent no keys in time")
    return _enter(run, Phase.SHARING, at_s), (ev.FixMembers(run.round, run.members),)


def _fix_dealers(run: Run, at_s: float) -> Step:
    run = _without(run, at_s, run.dealers, "has dealt no shares in time")
    return _enter(run, Phase.COLLECTING, at_s), (ev.FixDealers(run.round, run.dealers),)


def _without(run: Run, at_s: float, kept: tuple[ClientId, ...], reason: str) -> Run:
    """Returns the run in which only the clients of `kept` have slots."""
    lost = [client for client in run.active if not holds(kept, client)]
    losses = (*run.losses, *(ev.PlaceLost(at_s, client, reason, permanent=False) for client in lost))
    return replace(run, slots=len(kept), away=tuple(sorted((*run.away, *lost))), losses=losses)


def _enter(run: Run, phase: Phase, at_s: float) -> Run:
    entered = replace(run, phase=phase, since_s=at_s, extensions=0)
    return replace(entered, deadline_s=at_s + step_s(entered))
