"""A coordinator of simulated private rounds: the round machine, what the store would keep, and what must always hold.

It checks a message as the coordinator does before it passes its event on, adds masked updates and takes the masks away. After
each step it checks what must hold. Between two steps it may be restarted: it then reads the log of events again.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from simulation.private_members import (
    RING,
    VALUES,
    Message,
    View,
    combine,
    commitment,
    pair_key,
    pair_stream,
    public,
    self_stream,
)

from pluralllm.common.errors.tree import LeaseLost, Refused
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.spec import RunSpec
from pluralllm.server.commands.verify import Tables
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.machine import step
from pluralllm.server.rounds.state import EXCHANGING, Phase, Run
from pluralllm.server.runs.checkpoints import Content, Remembered, checkpoint_of, content_of
from pluralllm.server.runs.live_run import Progress, first_state, next_step
from pluralllm.server.storage.store import RunRecord

ARRIVED: dict[ev.RoundStep, Callable[[float, RoundNumber, ClientId, Digest], ev.Event]] = {
    ev.RoundStep.KEYS: ev.KeysArrived,
    ev.RoundStep.SHARES: ev.SharesArrived,
    ev.RoundStep.CONFIRMATION: ev.ConfirmationArrived,
    ev.RoundStep.REVEAL: ev.RevealArrived,
}


class Cheated(Exception):
    """The secrets do not fit: a dealer has dealt wrongly, or the sum is not one of honest updates."""

    def __init__(self, dealer: ClientId | None, reason: str) -> None:
        super().__init__(reason)
        self.dealer, self.reason = dealer, reason


@dataclass(slots=True)
class RoundHistory:
    """The history of one round, as an observer sees it who reads everything."""

    members: tuple[ClientId, ...] = ()
    dealers: tuple[ClientId, ...] = ()
    sum: tuple[ev.Receipt, ...] | None = None
    averaged: bool = False
    end: str = ""
    # Holders of the shares that have left their members, by dealer and kind: whoever listens has them, accepted or not.
    revealed: dict[tuple[ClientId, str], set[ClientId]] = field(default_factory=lambda: defaultdict(set))


class SimulatedCoordinator:
    """The coordinator of one run. `values` are the updates' values as the members wrote them down, by round and client."""

    def __init__(self, spec: RunSpec) -> None:
        self.record = RunRecord(RunId("r"), spec.canonical_json(), spec.sha256(), 0.0)
        self._first = VersionRecord(
            self.record.id, ModelVersion(0), RoundNumber(0), Digest("d0"), self.record.spec_sha256, "", (), 0.0
        )
        self.progress = Progress(first_state(self.record, spec, self._first), self._first)
        self.tables = Tables(versions={0: self._first})
        self.stored: dict[tuple[ev.RoundStep, ClientId], Message] = {}  # of the open round
        self.log: list[tuple[str, str]] = []
        self.rounds: defaultdict[int, RoundHistory] = defaultdict(RoundHistory)
        self.values: dict[tuple[int, ClientId], int] = {}
        self.revoked: set[ClientId] = set()
        self.outcomes: Counter[str] = Counter()
        self._view: tuple[int, Phase, View] | None = None

    @property
    def state(self) -> Run:
        return self.progress.state

    # Events

    def feed(self, event: ev.Event, message: Message | None = None) -> None:
        """Passes an event to the round machine. Raises a subclass of Refused, and then nothing has changed."""
        before = self.progress
        made = next_step(self.record, before, event, b"" if message is None else message.body)
        if made is None:
            return
        taken, change = made
        self.progress = taken.after
        self.log.append((ev.event_kind(event), json.dumps(ev.event_to_facts(event))))
        self.tables.write(change)
        if any(isinstance(effect, ev.OpenRound) for effect in taken.effects) or change.ended:
            self.stored.clear()
        for row in change.messages:
            assert message is not None
            self.stored[row.step, row.client] = message
        for effect in taken.effects:
            self._observe(before.state, effect)
        self._check(before.state)

    def receive(self, message: Message, at_s: float) -> None:
        """Takes a member's message, as often as it comes. Raises a subclass of Refused."""
        number, client = RoundNumber(message.round), message.client
        if (message.step, client) not in self.stored or message.round != self.state.round:
            self._check_message(message)
        event: ev.Event
        if message.step is ev.RoundStep.UPDATE:
            receipt = ev.Receipt(client, message.digest, 1)
            event = ev.UpdateArrived(at_s, number, self.state.version, receipt, statement=message.digest)
        elif message.step is ev.RoundStep.COMPLAINT:
            assert message.accused is not None
            event = ev.ComplaintArrived(at_s, number, client, message.digest, message.accused)
        else:
            event = ARRIVED[message.step](at_s, number, client, message.digest)
        before = self.progress
        try:
            self.feed(event, message)
        except Refused:
            assert self.progress is before, "a refused event changed the state"
            raise
        state = self.state
        if self.progress is not before and state.round == message.round and (message.step, client) in self.stored:
            assert step(state, replace(event, at_s=at_s + 1)) == (state, ()), "a retry was not free"

    def _check_message(self, message: Message) -> None:
        """Checks what a real coordinator checks by signatures and commitments. Raises Refused for a lie that it sees."""
        if message.round != self.state.round or self.state.phase not in (*EXCHANGING, Phase.COLLECTING):
            return  # the round machine refuses it
        view, refused = self.view(), LeaseLost(task=str(message.step))
        expected = {
            ev.RoundStep.SHARES: view.members,
            ev.RoundStep.COMPLAINT: view.dealt,
            ev.RoundStep.UPDATE: view.dealt,
            ev.RoundStep.CONFIRMATION: view.sum,
            ev.RoundStep.REVEAL: view.sum,
        }
        if expected.get(message.step, message.about) != message.about:
            raise refused
        if message.step is ev.RoundStep.REVEAL:
            complaint = self.stored.get((ev.RoundStep.COMPLAINT, message.client))
            if set(message.shares) != set(view.dealers) - {None if complaint is None else complaint.accused}:
                raise refused
            for dealer, (kind, share) in message.shares.items():
                box = view.dealers[dealer].boxes[message.client]
                wanted = "self" if dealer in view.updates else "mask"
                if kind != wanted or commitment(share) != box.commitments[0 if kind == "self" else 1]:
                    raise refused

    def view(self) -> View:
        """Returns what the members may know in the open phase."""
        state, stored = self.state, self.stored
        if self._view is not None and self._view[:2] == (state.round, state.phase):
            return self._view[2]
        keys = {name: stored[ev.RoundStep.KEYS, name] for name in state.members}
        dealers = {name: stored[ev.RoundStep.SHARES, name] for name in state.dealers}
        updates = {receipt.client: receipt.digest for receipt in state.receipts}
        signed = {sent.client: stored[ev.RoundStep.CONFIRMATION, sent.client] for sent in state.confirmed}
        view = View(state.round, self._threshold(len(keys)), keys, dealers, updates, signed)
        if state.phase is not Phase.KEYING:
            self._view = (state.round, state.phase, view)
        return view

    def overhear(self, message: Message, *, honest: bool) -> None:
        """Notes the shares in a message that leaves its member, whether it arrives or not."""
        history = self.rounds[message.round]
        for dealer, (kind, _) in message.shares.items():
            history.revealed[dealer, kind].add(message.client)
            if honest:
                fixed = history.sum is not None and dealer in {receipt.client for receipt in history.sum}
                assert kind == ("self" if fixed else "mask"), "an honest member revealed the wrong kind"

    def restart(self, at_s: float) -> None:
        """Reads the log again as a new process does, and begins the open step's time anew."""
        content = content_of(
            checkpoint_of(self.record.id, self.progress.sequence, Content(self.state, at_s, Remembered()))
        )
        assert content is not None
        assert content.state == self.state
        replayed = first_state(self.record, RunSpec.model_validate_json(self.record.spec_json), self._first)
        for kind, facts in self.log:
            replayed, _ = step(replayed, ev.event_from_facts(kind, json.loads(facts)))
        assert replayed == self.state, "the log gives another state"
        self._view = None
        self.feed(ev.CoordinatorStarted(at_s))

    # The sum

    def average(self, at_s: float) -> None:
        """Takes the masks away, and publishes the mean or gives the round up."""
        number = RoundNumber(self.state.round)
        try:
            total = self.unmasked()
        except Cheated as error:
            if error.dealer is not None:
                self.feed(ev.DealtWrongly(at_s, number, error.dealer, error.reason))
            else:
                self.feed(ev.AveragingFailed(at_s, number, error.reason, base_lost=False))
            return
        expected = sum(self.values[number, receipt.client] for receipt in self.state.receipts) % RING
        assert total == expected, "the sum is wrong"
        self.feed(ev.ModelAveraged(at_s, number, Digest(f"d{number}"), transcript=f"t{number}"))

    def unmasked(self) -> int:
        """Returns the sum of the updates' values. Raises Cheated."""
        view = self.view()
        reveals = [self.stored[ev.RoundStep.REVEAL, sent.client] for sent in self.state.revealed]
        secrets = {}
        for dealer in view.dealers:
            shares = [(one.client, one.shares[dealer][1]) for one in reveals if dealer in one.shares]
            assert len(shares) >= view.threshold, "a secret lacks shares"
            secrets[dealer] = secret = combine(dict(shares[: view.threshold]))
            known = view.keys[dealer]
            if (commitment(secret) if dealer in view.updates else public(secret)) != (
                known.commitment if dealer in view.updates else known.about
            ):
                raise Cheated(dealer, "its shares do not give its secret")
        totals = [
            sum(self.stored[ev.RoundStep.UPDATE, name].masked[position] for name in view.updates) for position in VALUES
        ]
        for position in VALUES:
            for name, secret in secrets.items():
                if name in view.updates:
                    totals[position] -= self_stream(secret, view.dealt, position)
                else:
                    totals[position] -= self._masks_of_dropped(view, name, secret, position)
        if totals[1] % RING != len(view.updates):
            raise Cheated(None, "SUM_IMPLAUSIBLE: the check word is wrong")
        return totals[0] % RING

    def _masks_of_dropped(self, view: View, name: ClientId, mask: int, position: int) -> int:
        """Returns what is left in the sum of the masks that a dealer outside of it shares with its members."""
        left = 0
        for peer in view.updates:
            dealt = pair_key(mask, name, peer, view.members)
            if commitment(dealt) != view.dealers[name].boxes[peer].commitments[2]:
                raise Cheated(name, "its pair keys are others")
            theirs = view.dealers[peer].boxes[name]
            if commitment(theirs.pair_key) != theirs.commitments[2]:
                raise Cheated(peer, "its box for a dropped member does not open")
            if peer < name:
                left += pair_stream(theirs.pair_key, dealt, view.dealt, position)
            else:
                left -= pair_stream(dealt, theirs.pair_key, view.dealt, position)
        return left

    # What must hold

    def _observe(self, before: Run, effect: ev.Effect) -> None:
        """Checks an effect against the others of its round."""
        match effect:
            case ev.FixMembers(number, members):
                history = self.rounds[number]
                assert not history.members, "the members were fixed twice"
                history.members = members
                assert len(members) >= before.policy.min_clients
            case ev.FixDealers(number, dealers):
                history = self.rounds[number]
                assert not history.dealers, "the dealers were fixed twice"
                assert set(dealers) <= set(history.members)
                history.dealers = dealers
            case ev.FixSum(number, receipts):
                history = self.rounds[number]
                assert history.sum is None, "the sum was fixed twice"
                history.sum = receipts
                names = {receipt.client for receipt in receipts}
                assert names <= set(history.dealers)
                assert len(names) >= max(before.policy.min_clients, self._threshold(len(history.members)))
                complaints = [said for (step, _), said in self.stored.items() if step is ev.RoundStep.COMPLAINT]
                outside = {name for said in complaints for name in (said.client, said.accused)}
                assert not names & outside, "a member that a complaint is about is in the sum"
                assert not names & self.revoked, "a revoked member is in the sum"
            case ev.Average(number, _, receipts, weights, scales):
                history = self.rounds[number]
                assert not history.averaged, "a round was averaged twice"
                assert (history.sum, weights, scales) == (receipts, (), ())
                needed = self._threshold(len(history.members))
                assert len(self.state.confirmed) >= needed <= len(self.state.revealed)
                history.averaged = True
            case ev.Publish(number, _, _, receipts, transcript=transcript):
                assert transcript == f"t{number}"
                assert receipts == self.rounds[number].sum
                self._end(number, "published")
            case ev.Abandon(number, reason):
                assert reason
                self._end(number, reason)
            case _:
                pass

    def _end(self, number: int, end: str) -> None:
        history = self.rounds[number]
        assert not history.end, "a round ended twice"
        history.end = end
        self.outcomes[" ".join(word for word in end.split() if not any(map(str.isdigit, word)))] += 1
        for dealer in history.dealers:
            kinds = [len(history.revealed[dealer, kind]) for kind in ("self", "mask")]
            threshold = self._threshold(len(history.members))
            assert min(kinds) < threshold, f"both secrets of {dealer} are known"
            in_sum = history.sum is not None and dealer in {receipt.client for receipt in history.sum}
            assert kinds[1 if in_sum else 0] < threshold, (
                "a member of the sum was rebuilt, or another one's own mask was"
            )

    def _threshold(self, members: int) -> int:
        """Returns how many answers a sum needs. The members know it by themselves, so it is not the round machine's number."""
        assert self.state.private is not None
        return (members + self.state.private.colluders) // 2 + 1

    def _check(self, before: Run) -> None:
        state, own = self.state, set(self.state.cohort)
        assert state.active_count == len(state.active)
        assert all(state.is_active(client) for client in state.active)
        if not (state.is_private_round or state.phase is Phase.AGGREGATING):
            assert not self.stored, "messages of an ended round are kept"
            assert state.phase not in EXCHANGING
            return
        assert set(state.dealers) <= set(state.members) <= own or state.phase is Phase.KEYING
        assert set(state.away) <= own
        assert {receipt.client for receipt in state.receipts} <= set(state.dealers)
        if state.round == before.round and before.phase not in (Phase.WAITING, Phase.KEYING):
            assert set(state.members) == set(before.members)
            if before.phase is not Phase.SHARING:
                assert set(state.dealers) == set(before.dealers)
                assert state.cohort == before.cohort, "a slot was given to another client"
        kept = {(key[1], key[2]): sha256 for key, sha256 in self.tables.messages.items()}
        assert kept == {key: message.digest for key, message in self.stored.items()}
