"""The messages of open private rounds: kept in memory, read from the store after a restart.

Memory has a message before it is durable, because the round may show it in the instant in which it is. Which messages are shown
follows from the run's state alone, which names each by its digest. So a message that never became durable does no harm.
"""

import asyncio
from collections.abc import Iterable, Mapping
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
    """The messages of one private round, as they are stored, and maybe others that are not durable."""

    number: RoundNumber
    _messages: dict[tuple[ClientId, Digest], Body] = field(default_factory=dict)

    def add(self, client: ClientId, digest: Digest, message: Body) -> None:
        """Adds a message. digest: the one by which the state of a run names it; of an update that of the masked file."""
        self._messages[client, digest] = message

    def of(self, kind: type[Message], sent: Iterable[ev.SentMessage | ev.Receipt]) -> dict[str, Message]:
        """Returns the messages of a kind that the run has on record, by client. sent: what the run's state has of them."""
        messages = ((one.client, self._messages.get((one.client, one.digest))) for one in sent)
        return {client: message for client, message in messages if isinstance(message, kind)}


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

    async def keep(self, run: LiveRun, client: ClientId, digest: Digest, message: Body) -> None:
        """Keeps a message in memory that is about to become durable, because the round may show it in the same instant.

        The arguments are those of `OpenRound.add`.
        """
        (await self.of(run)).add(client, digest, message)

    async def material(self, run: LiveRun) -> RoundMaterial:
        """Returns all that the members of a run's private round have sent, once the round can be unmasked."""
        messages = await self.of(run)
        state = run.state
        return RoundMaterial(
            fixed=self.fixed(run, messages),
            shares=messages.of(Shares, state.dealt),
            confirmations=messages.of(Confirmation, state.confirmed),
            reveals=messages.of(Reveal, state.revealed),
        )

    def fixed(self, run: LiveRun, messages: OpenRound) -> FixedRound:
        """Returns the round with the members, dealers and updates that are fixed so far."""
        state = run.state
        return FixedRound(
            terms=self.terms(run),
            members=tuple(messages.of(RoundMember, state.keyed).values()),
            dealers=state.dealers,
            updates=tuple(messages.of(UpdateStatement, state.summed_receipts).values()),
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
                    of_file = Digest(message.digest.hex()) if isinstance(message, UpdateStatement) else None
                    kept.add(row.client, of_file or row.sha256, message)
                self._rounds[run.id] = kept
            return kept

    def forget(self, run: RunId, number: int) -> None:
        """Drops the messages of a round that has ended from memory. The run's next round may be open already."""
        if (kept := self._rounds.get(run)) is not None and kept.number <= number:
            del self._rounds[run]


def recorded(state: Run, step: ev.RoundStep, client: ClientId) -> Digest | None:
    """Returns the digest of a client's message of a step that the run has on record; None if there is none.

    An update is no such message: its receipt is on record.
    """
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
