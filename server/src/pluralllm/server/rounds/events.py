"""Events of a run, the effects that must follow an event, and the JSON form of events in the event log.

Names of events are in the past tense (RunStarted). Names of effects are imperatives (OpenRound).
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import TypeAdapter

from pluralllm.common.words.ids import ClientId, Digest, GroupName, ModelVersion, RoundNumber
from pluralllm.common.words.noise import NoiseStatement
from pluralllm.common.words.not_reported import NotReported
from pluralllm.common.words.spec import GroupRole


@dataclass(frozen=True, slots=True)
class Receipt:
    """The record of an accepted update: the update's file is durable, and the update counts in its round."""

    client: ClientId
    digest: Digest
    examples: int  # number of training questions; the update's weight, unless the run spec's max_examples is smaller
    # Mean Jensen-Shannon distance between the base version's predictions and the client's answers, 0 .. sqrt(ln 2); None if the
    # client does not report it. In a run that asks for rewards: 1 - the client's mean reward.
    distance: float | None = None
    # L2 norm of the update, as the coordinator has calculated it; None for rewards, and for receipts of earlier releases.
    norm: float | None = None


class RoundStep(StrEnum):
    """The kinds of messages that a member sends in a private round, in their order. A member sends each at most once."""

    KEYS = "keys"
    SHARES = "shares"
    COMPLAINT = "complaint"
    UPDATE = "update"  # the statement about the masked update
    CONFIRMATION = "confirmation"
    REVEAL = "reveal"


@dataclass(frozen=True, slots=True)
class SentMessage:
    """A message that a member has sent in a private round. The message itself is stored beside the event log."""

    client: ClientId
    digest: Digest  # SHA-256 of the stored message
    accused: ClientId | None = None  # of a complaint: the member whose box is bad
    least: int = 1  # of shares: fewest updates of a sum that the dealer's update may be part of


@dataclass(frozen=True, slots=True)
class Score:
    """The scores that the client of one group has calculated for a model version.

    People read the scores; no decision about the run depends on them. If `not_reported` is set, the client keeps its numbers:
    every score is None, and `questions` is 0.
    """

    client: ClientId
    group: GroupName
    role: GroupRole
    version: ModelVersion
    alignment_score: float | None
    alignment_score_base2: float | None
    wasserstein_score: float | None
    questions: int
    not_reported: NotReported | None = None  # the reason; None if the client reports its scores
    # Alignment score minus the score with uniform answers as the context; None if the client does not report it.
    context_gain: float | None = None


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The event that an operator has started the run."""

    at_s: float


@dataclass(frozen=True, slots=True)
class RunPaused:
    """The event that an operator has paused the run: no new round opens until the run is resumed."""

    at_s: float


@dataclass(frozen=True, slots=True)
class RunResumed:
    """The event that an operator has resumed the paused run: rounds open again."""

    at_s: float


@dataclass(frozen=True, slots=True)
class RunCancelled:
    """The event that an operator has cancelled the run, which ends the run."""

    at_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class RunArchived:
    """The event that an operator has archived the ended run: lists leave it out. Nothing of the run is deleted."""

    at_s: float


@dataclass(frozen=True, slots=True)
class RunUnarchived:
    """The event that an operator has taken the run out of the archive: lists have it again."""

    at_s: float


@dataclass(frozen=True, slots=True)
class CoordinatorStarted:
    """The event that the coordinator has restarted.

    Every deadline of the run begins anew, so that clients lose no time by the coordinator's absence.
    """

    at_s: float


@dataclass(frozen=True, slots=True)
class ClientsJoined:
    """Clients of this run have connected that the run did not know to be connected. The list is sorted by id."""

    at_s: float
    clients: tuple[ClientId, ...]


@dataclass(frozen=True, slots=True)
class ClientsSeen:
    """Clients of this run are connected and have no task. Clients that do not matter to the run's next step may be left out.

    `trainers` are clients that train, `held_out` are clients of held-out groups. Each list is sorted by id.
    """

    at_s: float
    trainers: tuple[ClientId, ...]
    held_out: tuple[ClientId, ...]
    roster_head: str = ""  # head of the roster of peer keys; set only when a private round may open
    # Whether no other client can come that the run would wait for; False in events of older releases.
    nobody_else: bool = False


@dataclass(frozen=True, slots=True)
class RolloutsAsked:
    """An operator has asked for rewards of a batch of rollouts (texts that a language model has generated).

    The batch is durable. A round then opens in which clients score the batch. Only a run that asks for rewards has this event.
    """

    at_s: float
    digest: Digest
    candidates: int


@dataclass(frozen=True, slots=True)
class UpdateArrived:
    """A client's update has arrived: the update is verified, and its file is durable."""

    at_s: float
    round: RoundNumber
    base_version: ModelVersion
    receipt: Receipt
    noise: NoiseStatement | None = None  # as the client declares it; None if it states nothing, as in earlier releases
    statement: str = ""  # in a private round: digest of the stored statement, which the member has signed


@dataclass(frozen=True, slots=True)
class UpdateRefused:
    """A client's update was refused. The event is for people to see; the round goes on as if no update had arrived."""

    at_s: float
    round: RoundNumber
    client: ClientId
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class PlaceLost:
    """A client has lost its slot in the cohort: its lease expired, or the client reported that it cannot do its task."""

    at_s: float
    client: ClientId
    reason: str
    permanent: bool  # whether the client is excluded from this run until it calls Hello again


@dataclass(frozen=True, slots=True)
class ClientReturned:
    """A client that was excluded from the run has called Hello again. The client may take part in the run again."""

    at_s: float
    client: ClientId


@dataclass(frozen=True, slots=True)
class MemberRevoked:
    """A client's membership was revoked. The client's update to the open round does not count, unless averaging has begun.

    In a private round, the update counts as soon as the round has fixed its sum.
    """

    at_s: float
    client: ClientId


@dataclass(frozen=True, slots=True)
class EvaluationArrived:
    """A client has scored the run's current model version for its group, or has reported why it keeps its scores."""

    at_s: float
    score: Score


@dataclass(frozen=True, slots=True)
class ModelAveraged:
    """The next model version is made from a round's updates. Its file and the server optimizer's moments (state) are durable."""

    at_s: float
    round: RoundNumber
    digest: Digest
    moments: tuple[Digest, ...] = ()
    transcript: str = ""  # digest of a private round's transcript, which is durable
    # One for each receipt, if the rule has chosen among the updates: 1 for a chosen one, else 0. Empty for other rules.
    chosen: tuple[float, ...] = ()
    # The 64 numbers of the tail of a private round's sum (common.private_rounds.ring); empty in plain rounds and old events.
    tail: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class KeysArrived:
    """A client's fresh keys for a private round have arrived: they are verified, and the message is stored with this event."""

    at_s: float
    round: RoundNumber
    client: ClientId
    digest: Digest


@dataclass(frozen=True, slots=True)
class SharesArrived:
    """A member of a private round has dealt: a box with shares for each other member is verified, as far as it can be read."""

    at_s: float
    round: RoundNumber
    client: ClientId
    digest: Digest
    least: int = 1  # fewest updates of a sum that the member's update may be part of; 1 in events of older releases


@dataclass(frozen=True, slots=True)
class ComplaintArrived:
    """A member of a private round says that a box is bad that another member has dealt to it. Who of them lies is not known."""

    at_s: float
    round: RoundNumber
    client: ClientId
    digest: Digest
    dealer: ClientId


@dataclass(frozen=True, slots=True)
class ConfirmationArrived:
    """A member of a private round has signed the sum: which updates of which members it consists of."""

    at_s: float
    round: RoundNumber
    client: ClientId
    digest: Digest


@dataclass(frozen=True, slots=True)
class RevealArrived:
    """A member of a private round has revealed its shares for the sum. All of them are good, or the message is refused."""

    at_s: float
    round: RoundNumber
    client: ClientId
    digest: Digest


@dataclass(frozen=True, slots=True)
class DealtWrongly:
    """A member's secret does not follow from good shares, which proves that the member has dealt wrongly."""

    at_s: float
    round: RoundNumber
    dealer: ClientId
    reason: str


@dataclass(frozen=True, slots=True)
class AveragingFailed:
    """A round's updates cannot be averaged, and another attempt would not help.

    A stored file is corrupt or lost. The file is an update, the base version (the model version that the round trains from) or
    one of the server optimizer's moments (its state).
    """

    at_s: float
    round: RoundNumber
    reason: str
    base_lost: bool  # whether the base version or one of the moments is lost: then every later round would fail, too


@dataclass(frozen=True, slots=True)
class ClockTicked:
    """Time has passed. The round machine then checks whether a deadline of the run is over."""

    at_s: float


Event = (
    RunStarted
    | RunPaused
    | RunResumed
    | RunCancelled
    | RunArchived
    | RunUnarchived
    | CoordinatorStarted
    | ClientsJoined
    | ClientsSeen
    | RolloutsAsked
    | UpdateArrived
    | UpdateRefused
    | PlaceLost
    | ClientReturned
    | MemberRevoked
    | EvaluationArrived
    | ModelAveraged
    | AveragingFailed
    | KeysArrived
    | SharesArrived
    | ComplaintArrived
    | ConfirmationArrived
    | RevealArrived
    | DealtWrongly
    | ClockTicked
)
MessageArrived = KeysArrived | SharesArrived | ComplaintArrived | ConfirmationArrived | RevealArrived


@dataclass(frozen=True, slots=True)
class OpenRound:
    """Stores the record of a new round durably."""

    round: RoundNumber
    base_version: ModelVersion
    cohort: tuple[ClientId, ...]
    rollouts: str = ""  # digest of the batch, if the run asks for rewards


@dataclass(frozen=True, slots=True)
class RecordReceipt:
    """Stores a receipt durably. The coordinator acknowledges the client's update only after this effect."""

    round: RoundNumber
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class WithdrawReceipt:
    """Deletes a receipt durably, so that the client's update no longer counts. The event log still has the update's arrival."""

    round: RoundNumber
    client: ClientId


@dataclass(frozen=True, slots=True)
class RecordMessage:
    """Stores a member's message in a private round durably. The coordinator answers the member only after this effect."""

    round: RoundNumber
    step: RoundStep
    client: ClientId
    digest: Digest


@dataclass(frozen=True, slots=True)
class FixMembers:
    """Fixes the members of a private round: those whose keys have arrived. From now on the set only shrinks."""

    round: RoundNumber
    members: tuple[ClientId, ...]


@dataclass(frozen=True, slots=True)
class FixDealers:
    """Fixes the dealers of a private round: the members whose shares have arrived. Updates are masked for exactly these."""

    round: RoundNumber
    dealers: tuple[ClientId, ...]


@dataclass(frozen=True, slots=True)
class FixSum:
    """Fixes the sum of a private round: the updates that it consists of. No other sum is ever asked for in this round."""

    round: RoundNumber
    receipts: tuple[Receipt, ...]


@dataclass(frozen=True, slots=True)
class RecordEvaluation:
    """Stores a client's scores durably."""

    score: Score


@dataclass(frozen=True, slots=True)
class Average:
    """Starts the averaging of a round's updates. The averaging ends with the event ModelAveraged or AveragingFailed."""

    round: RoundNumber
    base_version: ModelVersion
    receipts: tuple[Receipt, ...]  # sorted by client
    weights: tuple[float, ...] = ()  # one for each receipt, from weighting.weigh; empty if the receipts alone decide
    scales: tuple[float, ...] = ()  # one for each receipt, from clipping.clip_scales; empty if no update is shortened


@dataclass(frozen=True, slots=True)
class Publish:
    """Makes the next model version current and closes the round, in one durable transaction."""

    round: RoundNumber
    version: ModelVersion
    digest: Digest
    receipts: tuple[Receipt, ...]
    moments: tuple[Digest, ...] = ()
    weights: tuple[float, ...] = ()  # as in Average; those of ModelAveraged.chosen if the rule has chosen
    scales: tuple[float, ...] = ()  # as in Average
    transcript: str = ""  # digest of a private round's transcript
    tail: tuple[int, ...] = ()  # as in ModelAveraged


@dataclass(frozen=True, slots=True)
class Abandon:
    """Ends the round durably without a new model version.

    The round's receipts are kept as records, but their updates are not used. The round's record has the reason.
    """

    round: RoundNumber
    reason: str


@dataclass(frozen=True, slots=True)
class EndRun:
    """Ends the run durably, and records the run's outcome and the reason for it."""

    outcome: str
    reason: str


Effect = (
    OpenRound
    | RecordReceipt
    | WithdrawReceipt
    | RecordMessage
    | FixMembers
    | FixDealers
    | FixSum
    | RecordEvaluation
    | Average
    | Publish
    | Abandon
    | EndRun
)

_ADAPTERS: dict[str, TypeAdapter[Any]] = {kind.__name__: TypeAdapter(kind) for kind in Event.__args__}


def event_kind(event: Event) -> str:
    """Returns the name under which the event log stores an event: the name of the event's class."""
    return type(event).__name__


def event_to_facts(event: Event) -> dict[str, Any]:
    """Returns an event's fields by name, as values that JSON can hold."""
    facts: dict[str, Any] = _ADAPTERS[event_kind(event)].dump_python(event, mode="json")
    return facts


def event_from_facts(kind: str, facts: dict[str, Any]) -> Event:
    """Makes an event from its kind and the facts that `event_to_facts` returned.

    Raises KeyError for an unknown kind and ValueError for facts that do not fit the kind. Both errors mean that this release
    cannot read the event.
    """
    event: Event = _ADAPTERS[kind].validate_python(facts)
    return event
