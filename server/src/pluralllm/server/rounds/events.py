"""Events of a run, the effects that must follow an event, and the JSON form of events in the event log.

Names of events are in the past tense (RunStarted). Names of effects are imperatives (OpenRound).
"""

from dataclasses import dataclass
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
    """A client's membership was revoked. The client's update to the open round does not count, unless averaging has begun."""

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
    | ClockTicked
)


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
    weights: tuple[float, ...] = ()  # as in Average
    scales: tuple[float, ...] = ()  # as in Average


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


Effect = OpenRound | RecordReceipt | WithdrawReceipt | RecordEvaluation | Average | Publish | Abandon | EndRun

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
