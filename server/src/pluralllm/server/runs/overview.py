"""Describes a run for people: the participants, the reasons why participants are late, and the next step.

The module is pure: it does no input or output.
"""

import datetime
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pluralllm.common.errors.privacy import NoiseDemanded
from pluralllm.common.errors.private_rounds import TooFewKnown
from pluralllm.common.errors.root import reason_of
from pluralllm.common.errors.tree import ConsentNeeded, InvalidData
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.words.aggregation import Aggregation
from pluralllm.common.words.ids import ClientId, GroupName
from pluralllm.common.words.noise import NoiseStatement
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.rounds.events import Receipt
from pluralllm.server.rounds.private import may_reach_quorum
from pluralllm.server.rounds.state import EXCHANGING, WITH_OPEN_ROUND, Outcome, Phase, Run
from pluralllm.server.rounds.weighting import shares_of
from pluralllm.server.runs.blocked import LEFT_OUT
from pluralllm.server.runs.leases import Lease
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.sessions import TAKEOVER_WINDOW_S, TOLD_TAKEOVERS, Session
from pluralllm.server.storage.store import ClientRecord, EvaluationRecord

LATE_AFTER = 0.5  # a client is late after this share of the phase's time
# In a private round: what the members do in each step.
SENT = {
    Phase.KEYING: "have sent their keys",
    Phase.SHARING: "have dealt their shares",
    Phase.CONFIRMING: "have confirmed which updates the sum has",
    Phase.UNMASKING: "have revealed the sum's masks",
}
TRAINING = (*SENT, Phase.COLLECTING)  # phases of a round in which clients have work
WEIGHTS_OF_CLIENTS = (
    "each client computes its own weight from its own distance, and only the sum of the weights is known"
)
NO_CLOSING_SCORES = (
    "this run has no closing round, so the means leave out the groups that report no score of their own (spec new "
    "--closing-round)"
)
CLOSING = "this is the closing round: nobody trains, and the scores of the last version are summed"
CODE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*(?=:|\Z)")  # of an error, before its message
# The daemon notices by itself that its owner has consented, pinned members, released answers or mended the private file.
MENDED_WHILE_IT_RUNS = frozenset(map(reason_of, (ConsentNeeded, InvalidData, NoiseDemanded, TooFewKnown)))
COMES_AND_GOES = "comes and goes too often, gets no task for some minutes"


class ParticipantState(StrEnum):
    """The state of a client in the open round or evaluation of a run."""

    ASSIGNED = "assigned"
    WORKING = "working"
    DONE = "done"
    LOST = "lost"
    IDLE = "idle"  # connected
    AWAY = "away"  # not connected
    REVOKED = "revoked"  # no member any more


@dataclass(frozen=True, slots=True)
class Participant:
    """The values that the status of a run shows about one client."""

    client: ClientId
    group: str
    role: GroupRole
    state: ParticipantState
    reason: str  # for administrators and the client itself
    observed: str  # the reason without the client's failure and its refused updates, for the other members
    last_seen_s: float
    progress: float
    stage: str
    weight: (
        float | None
    )  # share of the client's update in the newest model version; None if the version has no such update
    noise: NoiseStatement | None = (
        None  # as declared with its updates, or before them in its newest Hello; None if not stated
    )


def ended_evaluations(run: LiveRun, records: Sequence[EvaluationRecord]) -> list[EvaluationRecord]:
    """Returns the evaluation records of all model versions whose evaluation has ended.

    The records of an open evaluation are left out, because only some groups have reported scores. A fairness index over these
    groups would be wrong.
    """
    ended = -1 if run.state.evaluated is None else run.state.evaluated
    return [record for record in records if record.score.version <= ended]


def reported_scores(records: Sequence[EvaluationRecord]) -> list[tuple[GroupName, float]]:
    """Returns a pair of group and alignment score for each evaluation whose client reports its score, in the given order."""
    return [
        (record.score.group, record.score.alignment_score)
        for record in records
        if record.score.alignment_score is not None
    ]


def reported_gains(records: Sequence[EvaluationRecord]) -> list[tuple[GroupName, float]]:
    """Returns a pair of group and context gain for each evaluation whose client reports its context gain, in the given order."""
    return [
        (record.score.group, record.score.context_gain) for record in records if record.score.context_gain is not None
    ]


def participants(
    run: LiveRun,
    members: Sequence[ClientRecord],
    sessions: Mapping[ClientId, Session],
    leases: Mapping[ClientId, Lease],
    now_s: float,
    refused: Mapping[ClientId, int] | None = None,
    kept_out: Collection[ClientId] = (),
    revoked: Collection[ClientId] = (),
) -> tuple[Participant, ...]:
    """Returns one entry for every client that takes part in the run, sorted by client.

    `members` are all clients that have ever connected. `sessions` and `leases` have the clients' sessions and leases.
    `refused` has the numbers of refused updates of the clients since the process started. `kept_out` are the connected clients
    that come and go too often to get a task, and `revoked` the clients that are no members any more (presence.py).
    """
    people, weights = [], weights_in(run.newest, run.spec.aggregation)
    states, reasons, left_out = states_of(run.state), _failures(run.state), run.state.excluded_clients
    for member in members:
        session = sessions.get(member.client)
        role = run.spec.groups.role_of(member.group, member.role)
        if role is None:
            continue
        lease = leases.get(member.client)
        lease = lease if lease is not None and lease.run == run.id else None
        is_revoked = member.client in revoked
        state = (None if is_revoked else states.get(member.client)) or state_without_slot(session, now_s, is_revoked)
        if state is ParticipantState.ASSIGNED:
            state = state_with_slot(lease)
        failure = reasons.get(member.client, "") if state is ParticipantState.LOST else ""
        observed = _observed(run.state, session, lease, state, now_s)
        if state is ParticipantState.LOST and member.client in left_out and not run.is_over:
            observed, failure = LEFT_OUT, _with_mend(failure)
        if not observed and member.client in kept_out and not run.is_over:
            observed = COMES_AND_GOES
        people.append(
            Participant(
                client=member.client,
                group=member.group,
                role=role,
                state=state,
                reason="; ".join(filter(None, (failure or observed, *_notes(run, session, now_s))))
                or _refused(0 if refused is None else refused.get(member.client, 0)),
                observed=observed,
                last_seen_s=session.last_seen_s if session is not None else member.last_seen_s,
                progress=1.0 if state is ParticipantState.DONE else (lease.progress if lease is not None else 0.0),
                stage=lease.stage if lease is not None else "",
                weight=weights.get(member.client),
                noise=run.noise.get(member.client, member.noise),
            )
        )
    return tuple(people)


def _with_mend(failure: str) -> str:
    """Returns why a client takes no part in a run any more, and what its owner does. failure: its report, CODE: message."""
    code = CODE.match(failure)
    explained = f" (pluralllm explain {code[0]})" if code else ""
    then = (
        "; the client then takes part by itself"
        if code and code[0] in MENDED_WHILE_IT_RUNS
        else " and restarts the client"
    )
    return f"takes no part: {failure.rstrip('.')}. Its owner mends that{then}{explained}"


def weights_in(version: VersionRecord, aggregation: Aggregation) -> dict[ClientId, float]:
    """Returns the share of each client's update in a model version, from 0 to 1.

    The dictionary is empty for version 0, and for a version of a private round: its members' weights are known as a sum only.
    """
    if version.transcript:
        return {}
    receipts = [Receipt(*update) for update in version.updates]
    shares = shares_of(receipts, aggregation, version.weights)
    return {receipt.client: share for receipt, share in zip(receipts, shares, strict=True)}


def state_without_slot(session: Session | None, now_s: float, is_revoked: bool) -> ParticipantState:
    """Returns IDLE, AWAY or REVOKED for a client that has no slot. Status, page and metrics all ask this function."""
    if is_revoked:
        return ParticipantState.REVOKED
    return ParticipantState.IDLE if session is not None and session.is_live(now_s) else ParticipantState.AWAY


def state_with_slot(lease: Lease | None) -> ParticipantState:
    """Returns WORKING or ASSIGNED for a client that has a slot. Status, page and metrics all ask this function."""
    return ParticipantState.WORKING if lease is not None and lease.fetched else ParticipantState.ASSIGNED


def states_of(run: Run) -> dict[ClientId, ParticipantState]:
    """Returns the state of every client that is not idle. A client with a slot is ASSIGNED, whether it works or not.

    The states of all clients are found at once: a look at a run of a thousand clients must not look at each of them a thousand
    times.
    """
    states = dict.fromkeys((loss.client for loss in run.excluded), ParticipantState.LOST)
    states |= dict.fromkeys(run.away, ParticipantState.LOST)
    states |= dict.fromkeys(run.active, ParticipantState.ASSIGNED)
    states |= dict.fromkeys(run.sent, ParticipantState.DONE)
    return states


def _failures(run: Run) -> dict[ClientId, str]:
    """Returns the newest reason for which each client has lost its slot."""
    return {loss.client: loss.reason for loss in (*run.excluded, *run.losses)}


def _observed(run: Run, session: Session | None, lease: Lease | None, state: ParticipantState, now_s: float) -> str:
    """Returns what the coordinator itself notices about a client that is late or absent."""
    live = session is not None and session.is_live(now_s)
    if state is ParticipantState.ASSIGNED and not live:
        return "has a slot, is not connected"
    if state is ParticipantState.WORKING and not live and session is not None:
        return f"silent for {now_s - session.last_seen_s:.0f} s"
    if state is ParticipantState.WORKING and lease is not None and run.deadline_s is not None:
        length_s = run.deadline_s - run.since_s
        if now_s - run.since_s > LATE_AFTER * length_s:
            return f"slow: {lease.progress:.0%} after {now_s - lease.granted_s:.0f} s"
    if state is ParticipantState.AWAY and run.phase is not Phase.ENDED:
        return "not connected"
    return ""


def _notes(run: LiveRun, session: Session | None, now_s: float) -> Iterator[str]:
    """Yields what an administrator must know about a client, whatever the client does now."""
    if session is None or run.is_over:
        return
    if (takeovers := session.takeovers_within_window(now_s)) >= TOLD_TAKEOVERS:
        yield f"identity used from two places: {takeovers} takeovers in {TAKEOVER_WINDOW_S / 60:.0f} minutes"
    if session.data_changed_s is not None and session.data_changed_s >= run.record.created_s:
        at = datetime.datetime.fromtimestamp(session.data_changed_s, tz=datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        first = run.examples.get(session.client)
        weight = "" if first is None else f", its weight stays {first}"
        yield f"its private file has changed on {at}: {session.training_questions} questions now{weight}"


def _refused(total: int) -> str:
    return f"{total} {'update' if total == 1 else 'updates'} refused" if total else ""


def what_next(run: LiveRun, trouble: str, idle_trainers: int, now_s: float, blocked: str = "") -> str:
    """Returns the next step of the run as one sentence for people.

    `trouble` is the coordinator's problem with the run ("" if there is none). `idle_trainers` is the number of connected training
    clients without a task that may get one. `blocked` says why the run cannot go on before owners of clients act (blocked.py).
    """
    state = run.state
    if trouble:
        return f"stuck: {trouble} Tried again every few seconds."
    if blocked:
        return f"stands still: {blocked}. The reasons stand with the clients"
    hides_weights = (
        state.private is not None and state.aggregation.is_fair and state.phase in (Phase.WAITING, *TRAINING)
    )
    lacks_scores = (
        state.private is not None
        and state.private.closing_scores
        and not state.closes
        and state.version > 0
        and (state.outcome is Outcome.COMPLETED or (state.phase is Phase.EVALUATING and state.round >= state.rounds))
    )
    closes = state.is_closing and state.phase in WITH_OPEN_ROUND
    notes = {WEIGHTS_OF_CLIENTS: hides_weights, NO_CLOSING_SCORES: lacks_scores, CLOSING: closes}
    return "; ".join((_next_step(run, idle_trainers, now_s), *(note for note, is_due in notes.items() if is_due)))


def _next_step(run: LiveRun, idle_trainers: int, now_s: float) -> str:
    """Returns the next step of a run without troubles. The arguments are those of `what_next`."""
    state, policy = run.state, run.state.policy
    match state.phase:
        case Phase.CREATED:
            return f"an operator starts it: pluralllm run start {run.id}"
        case Phase.WAITING if state.paused:
            return f"an operator resumes it: pluralllm run resume {run.id}"
        case Phase.WAITING if state.rewards is not None:
            return f"round {state.round + 1} starts with the next batch of rollouts that is asked for"
        case Phase.WAITING if state.waits_to_close:
            left = _left(state.deadline_s, now_s)
            return f"the closing round sums the scores of version {state.version}; it starts in {left} or not at all"
        case Phase.WAITING:
            least = policy.target_clients if state.gathered_s is None else policy.min_clients
            until = "" if state.gathered_s is None else f", or in {_left(state.gathered_s + policy.gather_s, now_s)}"
            what = "evaluation of version 0" if state.evaluated is None else f"round {state.round + 1}"
            now = f"{idle_trainers} now, at least {least}{until}"
            return f"{what} starts with {policy.target_clients} idle training clients ({now})"
        case Phase.COLLECTING:
            have = f"{len(state.receipts)} of {state.slots} updates"
            if state.quorum_s is None:
                left = _left(state.deadline_s, now_s)
                is_lost = policy.on_missed_quorum == "extend" and not may_reach_quorum(state)
                then = (
                    "the round is given up: too few members are left for a sum" if is_lost else policy.on_missed_quorum
                )
                return f"{have}; quorum is {state.quorum}, deadline in {left}, then {then}"
            grace_over_s = min(state.quorum_s + policy.grace_after_quorum_s, state.deadline_s or 0.0)
            return f"{have}; quorum reached, the round closes in {_left(grace_over_s, now_s)} at the latest"
        case phase if phase in EXCHANGING:
            needed = state.quorum if phase in (Phase.KEYING, Phase.SHARING) else state.threshold
            left = _left(state.deadline_s, now_s)
            return f"{len(state.sent)} of {state.slots} members {SENT[phase]}; {needed} are needed, this step ends in {left}"
        case Phase.AGGREGATING:
            what = f"version {state.version + 1}" if state.rewards is None else f"rewards of round {state.round}"
            return f"{what} from {len(state.receipts)} updates"
        case Phase.EVALUATING:
            waiting = len(set(state.roster) - set(state.reported) - set(state.away))
            left = _left(state.deadline_s, now_s)
            return f"version {state.version} evaluated by {len(state.reported)} groups, {waiting} to come, deadline in {left}"
        case _:
            return f"nothing: {state.reason}. pluralllm model pull {run.id} DIR"


def _left(until_s: float | None, now_s: float) -> str:
    return f"{max(0.0, (until_s or 0.0) - now_s):.0f} s"


def why_waiting(run: LiveRun, client: ClientId) -> str:
    """Returns the reason why a client without a task has nothing to do in the run, as a text for people."""
    state = run.state
    if state.is_excluded(client):
        loss = next(loss for loss in state.excluded if loss.client == client)
        return f"{run.id}: left out ({loss.reason}); restart the client when that is mended"
    if state.paused:
        return f"{run.id}: paused by an operator"
    match state.phase:
        case Phase.CREATED:
            return f"{run.id}: not started"
        case Phase.WAITING if state.rewards is not None:
            return f"{run.id}: waiting for rollouts to score"
        case Phase.WAITING:
            return f"{run.id}: waiting for {state.policy.target_clients} training clients"
        case phase if phase in WITH_OPEN_ROUND:
            kind = "private and " if state.private is not None else ""
            return f"{run.id}: round {state.round} is {kind}under way, the next one may have a slot"
        case _:
            return f"{run.id}: evaluation of version {state.version}"
