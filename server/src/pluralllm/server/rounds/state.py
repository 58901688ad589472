"""The state of a run as frozen values. The round machine (machine.py) makes each new state from the one before it."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.reward_weights import RewardAggregation
from pluralllm.common.words.spec import Aggregation, RoundPolicy
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.sorted_clients import holds, receipt_of
from pluralllm.server.rounds.weighting import FairnessHistory


class Phase(StrEnum):
    """The phase that a run is in. machine.py has the table of transitions."""

    CREATED = "created"
    WAITING = "waiting"
    COLLECTING = "collecting"
    AGGREGATING = "aggregating"
    EVALUATING = "evaluating"
    ENDED = "ended"


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
    round: RoundNumber = RoundNumber(0)  # the newest round; it is open while COLLECTING or AGGREGATING
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
    deadline_s: float | None = None  # end of COLLECTING or EVALUATING
    extensions: int = 0  # how often the deadline was extended
    reported: tuple[ClientId, ...] = ()  # clients that have sent their scores, sorted; only while EVALUATING
    evaluated: ModelVersion | None = None  # newest version whose evaluation has ended
    refusals: tuple[ev.UpdateRefused, ...] = ()  # newest last
    outcome: Outcome | None = None
    reason: str = ""
    aggregation: Aggregation = Aggregation()
    limits_members: bool = (
        False  # whether weighting.py and clipping.py limit what one member contributes (format run/2)
    )
    fairness_history: FairnessHistory = ()  # each client's number for fairness-aware weights, as of `version`
    rewards: RewardAggregation | None = None  # None for a run that trains
    rollouts: str = ""  # digest of the open round's batch, if the run asks for rewards
    candidates: int = 0  # number of candidates in the open round's batch

    @property
    def active(self) -> tuple[ClientId, ...]:
        """The clients that have a slot in the cohort and have not yet delivered an update or scores."""
        done = {*(receipt.client for receipt in self.receipts), *self.reported, *self.away}
        return tuple(client for client in self.cohort if client not in done)

    @property
    def active_count(self) -> int:
        """The number of clients in `active`, without a pass over them.

        Receipts, `reported` and `away` are of clients in the cohort, and no client is in two of them.
        """
        return len(self.cohort) - len(self.receipts) - len(self.reported) - len(self.away)

    @property
    def free_slots(self) -> int:
        """The number of slots of the open round that no client has now; below 0 if a late update's slot has a new client."""
        return self.slots - len(self.receipts) - self.active_count

    def is_active(self, client: ClientId) -> bool:
        """Returns whether the client is in `active`."""
        return holds(self.cohort, client) and not holds(self.away, client) and not self.has_delivered(client)

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
        )
