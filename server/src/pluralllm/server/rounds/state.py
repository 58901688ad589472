"""A run as the round machine sees it: values only. machine.py changes it."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.reward_weights import RewardAggregation
from pluralllm.common.words.spec import Aggregation, RoundPolicy
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.weighting import FairnessHistory


class Phase(StrEnum):
    """A run's phase; machine.py has the transitions."""

    CREATED = "created"
    WAITING = "waiting"
    COLLECTING = "collecting"
    AGGREGATING = "aggregating"
    EVALUATING = "evaluating"
    ENDED = "ended"


class Outcome(StrEnum):
    """The way in which a run has ended."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class Run:
    """A run as the machine sees it: no tensors, no connections."""

    id: RunId
    seed: int
    rounds: int  # to run
    policy: RoundPolicy
    named_groups: int  # 0: open to any group
    model_digest: Digest  # of `version`
    version: ModelVersion = ModelVersion(0)
    round: RoundNumber = RoundNumber(0)  # opened so far; the open one while COLLECTING or AGGREGATING
    phase: Phase = Phase.CREATED
    since_s: float = 0.0  # when the phase began
    paused: bool = False
    gathered_s: float | None = None  # since when min_clients have been idle, while WAITING
    roster: tuple[ClientId, ...] = ()  # every client seen and not known to be gone; an evaluation waits for these
    # Of the open round; len(active) + len(receipts) <= slots, except for a late update whose slot has a new client.
    slots: int = 0
    cohort: tuple[
        ClientId, ...
    ] = ()  # every client that has or had a slot, sorted; while EVALUATING: the clients asked
    receipts: tuple[ev.Receipt, ...] = ()  # sorted by client; clients are in cohort, none twice
    away: tuple[ClientId, ...] = ()  # of the cohort, without a slot now, sorted
    losses: tuple[ev.PlaceLost, ...] = ()  # of the open round or evaluation, in order
    excluded: tuple[ev.PlaceLost, ...] = ()  # permanent failures
    quorum_s: float | None = None  # when the quorum was reached
    deadline_s: float | None = None  # of COLLECTING or EVALUATING
    extensions: int = 0
    reported: tuple[ClientId, ...] = ()  # while EVALUATING, sorted
    evaluated: ModelVersion | None = None  # newest version whose evaluation has ended
    refusals: tuple[ev.UpdateRefused, ...] = ()  # newest last
    outcome: Outcome | None = None
    reason: str = ""
    aggregation: Aggregation = Aggregation()
    fairness_history: FairnessHistory = ()  # what fairness-aware weights remember of each client, as of `version`
    rewards: RewardAggregation | None = None  # None for a run that trains
    rollouts: str = ""  # digest of the open round's batch, if the run asks for rewards
    candidates: int = 0  # in that batch

    @property
    def active(self) -> tuple[ClientId, ...]:
        """The clients that have a slot and have not delivered."""
        done = {*(receipt.client for receipt in self.receipts), *self.reported, *self.away}
        return tuple(client for client in self.cohort if client not in done)

    def is_excluded(self, client: ClientId) -> bool:
        """True if the client has failed for good in this run and has not come back."""
        return any(loss.client == client for loss in self.excluded)

    def cleared(self) -> Self:
        """The run without the state of its round or evaluation. A repeated commit finds its receipts in the store."""
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
