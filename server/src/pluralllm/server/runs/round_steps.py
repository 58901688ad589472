"""Takes the messages that the members of private rounds send, and shows each member what its next step needs.

Each message is checked as far as the coordinator can: it is signed by its sender's peer key, for this round, and has the form
that the step asks for. Then it is stored in the same transaction as the event of its arrival. The members check everything again:
they trust nothing that the coordinator shows.
"""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pluralllm.common.errors.private_rounds import WrongStep
from pluralllm.common.errors.tree import AlreadyCommitted, InvalidArgument, LeaseLost, RoundClosed
from pluralllm.common.private_rounds.messages import (
    Body,
    Complaint,
    Confirmation,
    Keys,
    Reveal,
    RoundMember,
    Shares,
    UpdateStatement,
    check_shares,
)
from pluralllm.common.private_rounds.round_sum import FixedRound, check_reveal
from pluralllm.common.private_rounds.round_view import DealtBox, MemberComplaint, MemberConfirmation, RoundView
from pluralllm.common.private_rounds.sealed_boxes import try_public
from pluralllm.common.process.clock import Clock
from pluralllm.common.wire.round_steps import (
    CONFIRMATION_PHASE,
    KEYS_PHASE,
    REVEAL_PHASE,
    SHARES_PHASE,
    UPDATE_PHASE,
    StepBody,
)
from pluralllm.common.words.ids import ClientId, Digest
from pluralllm.common.words.names import TaskName
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.sorted_clients import holds
from pluralllm.server.rounds.state import Phase, Run
from pluralllm.server.runs.coordinator import Coordinator
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.open_rounds import OpenRound, OpenRounds, PeerKeys, recorded

# The step of a phase, as in Task.phase.
STEPS: Mapping[Phase, int] = {
    Phase.KEYING: KEYS_PHASE,
    Phase.SHARING: SHARES_PHASE,
    Phase.COLLECTING: UPDATE_PHASE,
    Phase.CONFIRMING: CONFIRMATION_PHASE,
    Phase.UNMASKING: REVEAL_PHASE,
}
KINDS: Mapping[type[StepBody], ev.RoundStep] = {
    Keys: ev.RoundStep.KEYS,
    Shares: ev.RoundStep.SHARES,
    Complaint: ev.RoundStep.COMPLAINT,
    Confirmation: ev.RoundStep.CONFIRMATION,
    Reveal: ev.RoundStep.REVEAL,
}
PHASES: Mapping[ev.RoundStep, Phase] = {
    ev.RoundStep.KEYS: Phase.KEYING,
    ev.RoundStep.SHARES: Phase.SHARING,
    ev.RoundStep.COMPLAINT: Phase.COLLECTING,
    ev.RoundStep.CONFIRMATION: Phase.CONFIRMING,
    ev.RoundStep.REVEAL: Phase.UNMASKING,
}


class RoundSteps:
    """The desk of private rounds."""

    def __init__(self, *, coordinator: Coordinator, rounds: OpenRounds, clock: Clock, peer_keys: PeerKeys) -> None:
        self._coordinator, self._rounds, self._clock, self._peer_keys = coordinator, rounds, clock, peer_keys

    async def view(self, run: LiveRun, task: TaskName) -> tuple[int, RoundView]:
        """Returns the number of the round's step, and the round as far as the task's client may see it.

        Raises RoundClosed if the task's round is not open; LeaseLost if the client has no part in it.
        """
        messages = await self._rounds.of(run)
        step, state = self._check_part(run, task), run.state  # from here on nothing is awaited, so that all of it fits
        members = messages.of(RoundMember, state.keyed) if step > STEPS[Phase.KEYING] else {}
        dealt = state.dealt if step > STEPS[Phase.SHARING] else ()
        view = RoundView(
            terms=self._rounds.terms(run),
            members=tuple(members.values()),
            dealers=tuple(sent.client for sent in dealt),
            boxes=self._boxes_for(messages, state, dealt, task.client),
            complaints=tuple(
                MemberComplaint(client, complaint)
                for client, complaint in messages.of(Complaint, state.complained).items()
            ),
            updates=tuple(messages.of(UpdateStatement, state.summed_receipts).values()),
            confirmations=tuple(
                MemberConfirmation(client, confirmation.signature)
                for client, confirmation in messages.of(Confirmation, state.confirmed).items()
            )
            if step == STEPS[Phase.UNMASKING]
            else (),
        )
        return step, view

    async def put(self, run: LiveRun, task: TaskName, terms_sha256: bytes, body: StepBody) -> None:
        """Checks a member's message, and makes it durable. The same message again changes nothing.

        Raises RoundClosed or LeaseLost as `view`; WrongStep for a message of another step or with other terms; InvalidArgument if
        the message does not fit the round, or is not signed by its sender; AlreadyCommitted if the member has sent another one.
        """
        self._check_part(run, task)
        if terms_sha256 != self._rounds.terms(run).sha256:
            raise WrongStep(problem=f"its terms are not those of round {run.state.round} of run {run.id}")
        messages = await self._rounds.of(run)
        kind = KINDS[type(body)]
        stored = self._as_stored(task.client, body)
        text = stored.to_json()
        digest = _sha256(text)
        if self._is_known(run, task.client, kind, digest):
            return
        fixed = self._rounds.fixed(run, messages)
        await asyncio.to_thread(self._check, run.state, fixed, messages, task.client, body)
        await self._rounds.keep(run, task.client, digest, stored)
        await self._coordinator.dispatch(run, _arrival(self._clock.now_s(), task, digest, body), text)

    async def statement(self, run: LiveRun, task: TaskName, digest: Digest, signature: bytes) -> UpdateStatement:
        """Returns a member's statement about its masked update, after a check that it is signed for the round's dealers.

        Raises InvalidArgument if it is not; RoundClosed or LeaseLost as `view`.
        """
        self._check_part(run, task)
        statement = UpdateStatement(task.client, bytes.fromhex(digest), signature)
        fixed = self._rounds.fixed(run, await self._rounds.of(run))
        if not holds(run.state.dealers, task.client):
            raise LeaseLost(task=str(task))
        if not statement.is_signed(fixed.member(task.client).peer_key_der, fixed.dealers_sha256):
            problem = "is not the member's signature over the masked update for the dealers of this round"
            raise InvalidArgument(field="statement", problem=problem)
        return statement

    async def record_update(self, run: LiveRun, arrived: ev.UpdateArrived, statement: UpdateStatement) -> None:
        """Makes the arrival of a masked update durable, together with its member's statement."""
        text, receipt = statement.to_json(), arrived.receipt
        await self._rounds.keep(run, receipt.client, receipt.digest, statement)
        await self._coordinator.dispatch(run, replace(arrived, statement=_sha256(text)), text)

    # Checks

    def _check_part(self, run: LiveRun, task: TaskName) -> int:
        """Checks that the task's round is the open one, and that the client has a part in it. Returns the number of the step."""
        state = run.state
        if task.round != state.round or not state.is_private_round:
            raise RoundClosed(run=run.id, asked=task.round, current=state.round)
        if task.kind is not run.work_kind or not holds(state.cohort, task.client):
            raise LeaseLost(task=str(task))
        if state.phase is not Phase.KEYING and not holds(state.members, task.client):
            raise LeaseLost(task=str(task))
        return STEPS[state.phase]

    def _as_stored(self, client: ClientId, body: StepBody) -> Body:
        """Returns a message as it is stored: keys together with the peer key that their sender has now."""
        if not isinstance(body, Keys):
            return body
        peer_key = self._peer_keys.peer_key(client)
        if peer_key is None:
            raise InvalidArgument(field="keys", problem=f"{client} has no peer key on record; it sends one with Hello")
        return RoundMember(client, peer_key, body)

    def _is_known(self, run: LiveRun, client: ClientId, kind: ev.RoundStep, digest: Digest) -> bool:
        """Returns whether the message is on record. If it is not, it must belong to the round's present step.

        Raises AlreadyCommitted if the member has sent another one; WrongStep if the message belongs to another step.
        """
        earlier = recorded(run.state, kind, client)
        if earlier is not None and earlier != digest:
            raise AlreadyCommitted(client=client, round=run.state.round, committed=earlier)
        if earlier is None and PHASES[kind] is not run.state.phase:
            raise WrongStep(
                problem=f"round {run.state.round} is {run.state.phase}, and the message is for {PHASES[kind]}"
            )
        return earlier is not None

    def _check(self, state: Run, fixed: FixedRound, messages: OpenRound, client: ClientId, body: StepBody) -> None:
        """Checks a message of the present step. Raises InvalidArgument."""
        match body:
            case Keys():
                self._check_keys(fixed, client, body)
            case Shares():
                check_shares(body, fixed.member(client).peer_key_der, fixed.members_sha256, client, fixed.names)
                if body.least > len(fixed.names):
                    problem = f"asks for sums of {body.least} updates, and the round has {len(fixed.names)} members"
                    raise InvalidArgument(field="boxes", problem=problem)
            case Complaint():
                _check_complaint(fixed, messages.of(Shares, state.dealt), client, body)
            case Confirmation():
                _check_confirmation(fixed, client, body)
            case Reveal():
                complaint = messages.of(Complaint, state.complained).get(client)
                shares = messages.of(Shares, state.dealt)
                check_reveal(fixed, client, body, shares, "" if complaint is None else complaint.dealer)

    def _check_keys(self, fixed: FixedRound, client: ClientId, keys: Keys) -> None:
        """Checks fresh keys. Each key seals a box here, so that no other member fails on it later."""
        peer_key = self._peer_keys.peer_key(client)
        if peer_key is None or not keys.is_signed(peer_key, fixed.terms.sha256, client):
            raise InvalidArgument(
                field="keys.signature", problem=f"is not that of {client} for the terms of this round"
            )
        try_public(keys.mask_public, "mask_public")
        try_public(keys.box_public, "box_public")

    def _boxes_for(
        self, messages: OpenRound, state: Run, dealt: Sequence[ev.SentMessage], client: ClientId
    ) -> tuple[DealtBox, ...]:
        """Returns the boxes that the other dealers have dealt to a client, sorted by dealer."""
        index = state.members.index(client) + 1 if dealt else 0
        shares = messages.of(Shares, dealt)
        return tuple(DealtBox(dealer, boxes.box_of(index)) for dealer, boxes in shares.items() if dealer != client)


def _sha256(text: bytes) -> Digest:
    return Digest(hashlib.sha256(text).hexdigest())


def _check_complaint(fixed: FixedRound, shares: Mapping[str, Shares], client: ClientId, complaint: Complaint) -> None:
    if not complaint.is_signed(fixed.member(client).peer_key_der, fixed.dealers_sha256, client):
        raise InvalidArgument(field="complaint.signature", problem=f"is not that of {client} for this round")
    dealt = shares.get(complaint.dealer)
    if dealt is None or dealt.box_of(fixed.index(client)).sha256 != complaint.box_sha256:
        problem = f"is not a box that {complaint.dealer} has dealt to {client} in this round"
        raise InvalidArgument(field="complaint.box_sha256", problem=problem)


def _check_confirmation(fixed: FixedRound, client: ClientId, confirmation: Confirmation) -> None:
    if confirmation.sum_sha256 != fixed.sum_sha256:
        raise InvalidArgument(field="confirmation.sum_sha256", problem="is not the sum of this round")
    if not confirmation.is_signed(fixed.member(client).peer_key_der):
        raise InvalidArgument(field="confirmation.signature", problem=f"is not that of {client} over this sum")


def _arrival(at_s: float, task: TaskName, digest: Digest, body: StepBody) -> ev.MessageArrived:
    """Returns the event that a message has arrived."""
    match body:
        case Keys():
            return ev.KeysArrived(at_s, task.round, task.client, digest)
        case Shares():
            return ev.SharesArrived(at_s, task.round, task.client, digest, body.least)
        case Complaint():
            return ev.ComplaintArrived(at_s, task.round, task.client, digest, ClientId(body.dealer))
        case Confirmation():
            return ev.ConfirmationArrived(at_s, task.round, task.client, digest)
        case Reveal():
            return ev.RevealArrived(at_s, task.round, task.client, digest)
