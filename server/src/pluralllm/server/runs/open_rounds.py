"""The messages of open private rounds: kept in memory, read from the store after a restart."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from pluralllm.common.private_rounds.messages import (
    Body,
    Complaint,
    Confirmation,
    Reveal,
    RoundMember,
    Shares,
    UpdateStatement,
)
from pluralllm.common.private_rounds.round_sum import FixedRound
from pluralllm.common.private_rounds.round_terms import terms_of
from pluralllm.common.private_rounds.statements import RoundTerms
from pluralllm.common.words.ids import ClientId, Digest, RoundNumber, RunId
from pluralllm.server.aggregation.private_version import RoundMaterial
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.sorted_clients import receipt_of
from pluralllm.server.rounds.state import Run
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.storage.store import Store

BODIES: Mapping[ev.RoundStep, type[Body]] = {
    ev.RoundStep.KEYS: RoundMember,  # with the peer key that the member had then
    ev.RoundStep.SHARES: Shares,
    ev.RoundStep.COMPLAINT: Complaint,
    ev.RoundStep.UPDATE: UpdateStatement,
    ev.RoundStep.CONFIRMATION: Confirmation,
    ev.RoundStep.REVEAL: Reveal,
}
Message = TypeVar("Message", bound=Body)


class PeerKeys(Protocol):
    """The members' peer keys, and the head of the roster that lists them."""

    @property
    def head(self) -> bytes: ...

    def peer_key(self, name: ClientId) -> bytes | None:
        """Returns a member's peer key (SubjectPublicKeyInfo, DER), or None if it has none on record."""
        ...


class NoPeerKeys:
    """The peer keys of a coordinator without a roster: nobody has one, so no private round opens."""

    head = b""

    def peer_key(self, name: ClientId) -> bytes | None:
        del name
        return None


@dataclass(slots=True)
class OpenRound:
    """The messages of one private round, as they are stored, by step and by client."""

    number: RoundNumber
    messages: dict[ev.RoundStep, dict[ClientId, Body]] = field(default_factory=dict)

    def of(self, step: ev.RoundStep, kind: type[Message], clients: Sequence[ClientId]) -> dict[str, Message]:
        """Returns the messages of one kind of those of the clients that have sent one, in the order of `clients`."""
        sent = {client: self.messages.get(step, {}).get(client) for client in clients}
        return {client: message for client, message in sent.items() if isinstance(message, kind)}


class OpenRounds:
    """The open private rounds of all runs, with the messages that their members have sent."""

    def __init__(self, store: Store, federation: str) -> None:
        """Stores the arguments. federation: its name, which the terms of every round name."""
        self._store, self._federation = store, federation
        self._rounds: dict[RunId, OpenRound] = {}
        self._reading = asyncio.Lock()

    def terms(self, run: LiveRun) -> RoundTerms:
        """Returns the terms of a run's open private round."""
        return terms_of(
            run.spec,
            federation=self._federation,
            run=run.id,
            number=RoundNumber(run.state.round),
            spec_sha256=run.record.spec_sha256,
            base_version=run.base.version,
            base_digest=run.base.digest,
            base_record_sha256=run.base.record_sha256,
            roster_head=bytes.fromhex(run.state.roster_head),
        )

    async def keep(self, run: LiveRun, client: ClientId, step: ev.RoundStep, message: Body) -> None:
        """Keeps a message in memory that is about to become durable, because the round may show it in the same instant."""
        messages = await self.of(run)
        if recorded(run.state, step, client) is None:
            messages.messages.setdefault(step, {})[client] = message

    async def material(self, run: LiveRun) -> RoundMaterial:
        """Returns all that the members of a run's private round have sent, once the round can be unmasked."""
        messages = await self.of(run)
        state = run.state
        confirmed = tuple(sent.client for sent in state.confirmed)
        revealed = tuple(sent.client for sent in state.revealed)
        return RoundMaterial(
            fixed=self.fixed(run, messages),
            shares=messages.of(ev.RoundStep.SHARES, Shares, state.dealers),
            confirmations=messages.of(ev.RoundStep.CONFIRMATION, Confirmation, confirmed),
            reveals=messages.of(ev.RoundStep.REVEAL, Reveal, revealed),
        )

    def fixed(self, run: LiveRun, messages: OpenRound) -> FixedRound:
        """Returns the round with the members, dealers and updates that are fixed so far."""
        state = run.state
        return FixedRound(
            terms=self.terms(run),
            members=tuple(messages.of(ev.RoundStep.KEYS, RoundMember, state.members).values()),
            dealers=state.dealers,
            updates=tuple(messages.of(ev.RoundStep.UPDATE, UpdateStatement, state.summed).values()),
        )

    async def of(self, run: LiveRun) -> OpenRound:
        """Returns the messages of the run's open round. After a restart they are read from the store."""
        async with self._reading:
            number, kept = RoundNumber(run.state.round), self._rounds.get(run.id)
            if kept is None or kept.number != number:
                rows = await self._store.round_messages(run.id, number)
                kept = OpenRound(number)
                for row in rows:
                    message = BODIES[row.step].from_json(row.body)
                    kept.messages.setdefault(row.step, {})[row.client] = message
                self._rounds[run.id] = kept
            return kept

    def forget(self, run: LiveRun) -> None:
        """Drops the messages of a run's round from memory."""
        self._rounds.pop(run.id, None)


def digest_of(message: Body) -> Digest:
    """Returns the SHA-256 of a message as it is stored."""
    return Digest(hashlib.sha256(message.to_json()).hexdigest())


def recorded(state: Run, step: ev.RoundStep, client: ClientId) -> Digest | None:
    """Returns the digest of a client's message of a kind that the run has on record; None if there is none.

    An update has the digest of the masked file, not that of the statement about it.
    """
    if step is ev.RoundStep.UPDATE:
        receipt = receipt_of(state.receipts, client)
        return None if receipt is None else receipt.digest
    sent = receipt_of(_messages(state, step), client)
    return None if sent is None else sent.digest


def _messages(state: Run, step: ev.RoundStep) -> tuple[ev.SentMessage, ...]:
    match step:
        case ev.RoundStep.KEYS:
            return state.keyed
        case ev.RoundStep.SHARES:
            return state.dealt
        case ev.RoundStep.COMPLAINT:
            return state.complained
        case ev.RoundStep.CONFIRMATION:
            return state.confirmed
        case _:
            return state.revealed
