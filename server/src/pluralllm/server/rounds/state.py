"""The state of a run as frozen values. The round machine (machine.py) makes each new state from the one before it."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

from pluralllm.common.words.aggregation import Aggregation
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.private_rounds import PrivateRounds, threshold
from pluralllm.common.words.reward_weights import RewardAggregation
from pluralllm.common.words.spec import RoundPolicy
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.sorted_clients import Clients, Messages, holds, receipt_of
from pluralllm.server.rounds.weighting import FairnessHistory


class Phase(StrEnum):
    """The phase that a run is in. machine.py has the table of transitions; private.py has that of private rounds."""

    CREATED = "created"
    WAITING = "waiting"
    KEYING = "keying"
    SHARING = "sharing"
    COLLECTING = "collecting"
    CONFIRMING = "confirming"
    UNMASKING = "unmasking"
    AGGREGATING = "aggregating"
    EVALUATING = "evaluating"
    ENDED = "ended"


# The phases in which the members of a private round exchange messages. Between them, a private round collects updates.
EXCHANGING = (Phase.KEYING, Phase.SHARING, Phase.CONFIRMING, Phase.UNMASKING)
WITH_OPEN_ROUND = (*EXCHANGING, Phase.COLLECTING, Phase.AGGREGATING)


class Outcome(StrEnum):
    """The outcome of an ended run: completed, cancelled or aborted."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class Run:
    """The state of a run as the round machine sees it: frozen values. No value is a tensor or a connection."""

    id: RunId
    seed: int
    rounds: int  # number of rounds after which the run ends
    policy: RoundPolicy
    named_groups: int  # number of groups that the run spec names; 0 if every group may take part
    model_digest: Digest  # digest of the file of `version`
    version: ModelVersion = ModelVersion(0)
    round: RoundNumber = RoundNumber(0)  # the newest round; it is open in the phases WITH_OPEN_ROUND
    phase: Phase = Phase.CREATED
    since_s: float = 0.0  # when the phase began
    paused: bool = False
    gathered_s: float | None = None  # time since which min_clients have been idle; only while WAITING
    roster: tuple[ClientId, ...] = ()  # clients seen and not known to be gone; an evaluation waits for all of them
    # Size of the open round's cohort; len(active) + len(receipts) <= slots, unless a late update's slot has a new client.
    slots: int = 0
    cohort: tuple[
        ClientId, ...
    ] = ()  # every client that has or had a slot, sorted; while EVALUATING: the clients asked
    receipts: tuple[ev.Receipt, ...] = ()  # sorted by client; clients are in cohort, none twice
    away: tuple[ClientId, ...] = ()  # clients of the cohort that have lost their slot, sorted
    losses: tuple[ev.PlaceLost, ...] = ()  # slots lost in the open round or evaluation, in order
    excluded: tuple[ev.PlaceLost, ...] = ()  # permanent failures
    quorum_s: float | None = None  # when the quorum was reached
    # End of COLLECTING, EVALUATING, a phase of EXCHANGING, or the wait for the closing round.
    deadline_s: float | None = None
    extensions: int = 0  # how often the phase's deadline was extended
    reported: tuple[ClientId, ...] = ()  # clients that have sent their scores, sorted; only while EVALUATING
    evaluated: ModelVersion | None = None  # newest version whose evaluation has ended
    refusals: tuple[ev.UpdateRefused, ...] = ()  # newest last
    outcome: Outcome | None = None
    reason: str = ""
    archived: bool = False  # whether lists leave the run out; only if it has ENDED
    aggregation: Aggregation = Aggregation()
    limits_members: bool = (
        False  # whether weighting.py and clipping.py limit what one member contributes (format run/2 and later)
    )
    fairness_history: FairnessHistory = ()  # each client's number for fairness-aware weights, as of `version`
    rewards: RewardAggregation | None = None  # None for a run that trains
    rollouts: str = ""  # digest of the open round's batch, if the run asks for rewards
    candidates: int = 0  # number of candidates in the open round's batch
    private: PrivateRounds | None = None  # None for plain rounds
    gives_up_small_sums: bool = (
        False  # whether a private round without hope of a sum is not extended (format run/3 and later)
    )
    closes: bool = False  # whether a closing round follows the last round, which sums the scores of the last version
    roster_head: str = ""  # the roster of peer keys that the open private round is for
    # Messages of the open private round, sorted by client. Whoever is in `keyed` is a member after KEYING, and whoever is in
    # `dealt` is a dealer after SHARING.
    keyed: Messages = ()
    dealt: Messages = ()
    complained: Messages = ()
    confirmed: Messages = ()
    revealed: Messages = ()

    @property
    def is_closing(self) -> bool:
        """Whether the newest round is the closing round."""
        return self.closes and self.round > self.rounds

    @property
    def waits_to_close(self) -> bool:
        """Whether the run has done its rounds, and waits for the members of its closing round."""
        return self.closes and self.phase is Phase.WAITING and self.round == self.rounds

    @property
    def is_private_round(self) -> bool:
        """Whether a private round is open and its members have work in it."""
        return self.phase in EXCHANGING or (self.private is not None and self.phase is Phase.COLLECTING)

    @property
    def threshold(self) -> int:
        """The number of members that must confirm and reveal the sum of the open private round; 0 in a plain round."""
        return 0 if self.private is None else threshold(len(self.keyed), self.private.colluders)

    @property
    def quorum(self) -> int:
        """The least number of updates that make a version."""
        return max(self.policy.min_clients, self.threshold)

    @property
    def members(self) -> Clients:
        """The clients that have sent keys for the open private round, sorted."""
        return tuple(sent.client for sent in self.keyed)

    @property
    def dealers(self) -> Clients:
        """The members that have dealt shares in the open private round, sorted. Updates are masked for them, and they reveal."""
        return tuple(sent.client for sent in self.dealt)

    @property
    def outside(self) -> frozenset[ClientId]:
        """The dealers whose updates the sum leaves out: those who complain of a box, and those whom a complaint is about."""
        return frozenset(
            client for sent in self.complained for client in (sent.client, sent.accused) if client is not None
        )

    @property
    def summed_receipts(self) -> tuple[ev.Receipt, ...]:
        """The receipts of the updates in the sum that the open private round has fixed, sorted by client."""
        fixed = self.private is not None and self.phase in (Phase.CONFIRMING, Phase.UNMASKING, Phase.AGGREGATING)
        return self.receipts if fixed else ()

    @property
    def summed(self) -> Clients:
        """The members whose updates are in that sum, sorted."""
        return tuple(receipt.client for receipt in self.summed_receipts)

    @property
    def returning(self) -> Clients:
        """The clients that may take up their own slots in the open private round again, because their daemons are back."""
        holders = self.keyed if self.phase is Phase.SHARING else self.dealt
        return tuple(sent.client for sent in holders if holds(self.away, sent.client))

    @property
    def sent(self) -> Clients:
        """The clients that have sent what the open phase waits for, sorted."""
        match self.phase:
            case Phase.KEYING:
                return self.members
            case Phase.SHARING:
                return self.dealers
            case Phase.CONFIRMING:
                return tuple(sent.client for sent in self.confirmed)
            case Phase.UNMASKING:
                return tuple(sent.client for sent in self.revealed)
            case _:
                return (*self.reported, *(receipt.client for receipt in self.receipts))

    @property
    def active(self) -> tuple[ClientId, ...]:
        """The clients that have a slot in the cohort and have not yet delivered an update or scores.

        The members of a private round keep their slots until the round's end, because the round has more steps.
        """
        if self.is_private_round:
            return tuple(client for client in self.cohort if not holds(self.away, client))
        done = {*(receipt.client for receipt in self.receipts), *self.reported, *self.away}
        return tuple(client for client in self.cohort if client not in done)

    @property
    def active_count(self) -> int:
        """The number of clients in `active`, without a pass over them.

        Receipts, `reported` and `away` are of clients in the cohort, and no client is in two of them.
        """
        delivered = 0 if self.is_private_round else len(self.receipts) + len(self.reported)
        return len(self.cohort) - delivered - len(self.away)

    @property
    def free_slots(self) -> int:
        """The number of slots of the open round that no client has now; below 0 if a late update's slot has a new client.

        After the first phase of a private round, no slot is for a new client: each is for the member that has lost it.
        """
        if self.is_private_round:
            return self.slots - self.active_count if self.phase is Phase.KEYING else len(self.returning)
        return self.slots - len(self.receipts) - self.active_count

    @property
    def has_all_it_can_get(self) -> bool:
        """Whether a plain round has its quorum and no client at work, so that only another client could bring more."""
        is_plain_and_open = self.phase is Phase.COLLECTING and self.private is None
        return is_plain_and_open and self.quorum_s is not None and self.active_count <= 0

    def is_active(self, client: ClientId) -> bool:
        """Returns whether the client is in `active`."""
        has_slot = holds(self.cohort, client) and not holds(self.away, client)
        return has_slot and (self.is_private_round or not self.has_delivered(client))

    def has_delivered(self, client: ClientId) -> bool:
        """Returns whether the client has delivered its update or its scores."""
        return receipt_of(self.receipts, client) is not None or holds(self.reported, client)

    @property
    def excluded_clients(self) -> frozenset[ClientId]:
        """The clients that have failed permanently in this run and have not called Hello since the failure."""
        return frozenset(loss.client for loss in self.excluded)

    def is_excluded(self, client: ClientId) -> bool:
        """Returns whether the client has failed permanently in this run and has not called Hello since the failure."""
        return any(loss.client == client for loss in self.excluded)

    def cleared(self) -> Self:
        """Returns the run without the state of its round or evaluation, such as the cohort and the receipts.

        If a client then repeats the commit of its update, the coordinator finds the receipt in the store.
        """
        return replace(
            self,
            gathered_s=None,
            slots=0,
            cohort=(),
            receipts=(),
            away=(),
            losses=(),
            quorum_s=None,
            deadline_s=None,
            extensions=0,
            reported=(),
            rollouts="",
            candidates=0,
            roster_head="",
            keyed=(),
            dealt=(),
            complained=(),
            confirmed=(),
            revealed=(),
        )
