"""Events of a run (past tense), the effects that must follow (imperative), and the JSON form of events in the log."""

from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from pluralllm.common.words.ids import ClientId, Digest, GroupName, ModelVersion, RoundNumber
from pluralllm.common.words.spec import GroupRole


@dataclass(frozen=True, slots=True)
class Receipt:
    """An update that is durable and counts."""

    client: ClientId
    digest: Digest
    examples: int  # training questions; the weight before the cap
    # Mean JS distance of the base model, 0 .. sqrt(ln 2), None if the partner does not report it; for rewards 1 - their mean.
    distance: float | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """One group's scores of a model version. Scores are advisory: they decide nothing."""

    client: ClientId
    group: GroupName
    role: GroupRole
    version: ModelVersion
    alignment_score: float
    alignment_score_base2: float
    wasserstein_score: float | None
    questions: int


@dataclass(frozen=True, slots=True)
class RunStarted:
    """An operator has started the run."""

    at_s: float


@dataclass(frozen=True, slots=True)
class RunPaused:
    """An operator has paused it: no new round opens."""

    at_s: float


@dataclass(frozen=True, slots=True)
class RunResumed:
    """An operator has resumed it."""

    at_s: float


@dataclass(frozen=True, slots=True)
class RunCancelled:
    """An operator has ended it."""

    at_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class CoordinatorStarted:
    """The coordinator has restarted. Every deadline begins anew: clients do not pay for the coordinator's absence."""

    at_s: float


@dataclass(frozen=True, slots=True)
class ClientsSeen:
    """The clients that are connected, take part in this run and have no task, sorted by id."""

    at_s: float
    trainers: tuple[ClientId, ...]
    held_out: tuple[ClientId, ...]


@dataclass(frozen=True, slots=True)
class RolloutsAsked:
    """A batch of rollouts to score is durable: it opens a round of a run that asks for rewards."""

    at_s: float
    digest: Digest
    candidates: int


@dataclass(frozen=True, slots=True)
class UpdateArrived:
    """The update is verified and its blob durable."""

    at_s: float
    round: RoundNumber
    base_version: ModelVersion
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class UpdateRefused:
    """An update was refused. People see it; the round goes on as if no update had arrived."""

    at_s: float
    round: RoundNumber
    client: ClientId
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class PlaceLost:
    """A client has lost its slot: its lease expired, or it reported that it cannot do its task."""

    at_s: float
    client: ClientId
    reason: str
    permanent: bool  # for this run, until the client says Hello again


@dataclass(frozen=True, slots=True)
class ClientReturned:
    """A client that was excluded has said Hello again."""

    at_s: float
    client: ClientId


@dataclass(frozen=True, slots=True)
class MemberRevoked:
    """A client's membership is revoked. Its update to the open round does not count, unless averaging has begun."""

    at_s: float
    client: ClientId


@dataclass(frozen=True, slots=True)
class EvaluationArrived:
    """A client has scored the version for its group."""

    at_s: float
    score: Score


@dataclass(frozen=True, slots=True)
class ModelAveraged:
    """The next version's blob is durable, and so are the server optimizer's moments."""

    at_s: float
    round: RoundNumber
    digest: Digest
    moments: tuple[Digest, ...] = ()


@dataclass(frozen=True, slots=True)
class AveragingFailed:
    """A stored update, the base or one of its moments is corrupt or lost: a retry would not help."""

    at_s: float
    round: RoundNumber
    reason: str
    base_lost: bool  # or one of its moments: then every later round would fail too


@dataclass(frozen=True, slots=True)
class ClockTicked:
    """Time has passed, so a deadline may be over."""

    at_s: float


Event = (
    RunStarted
    | RunPaused
    | RunResumed
    | RunCancelled
    | CoordinatorStarted
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
    """Makes the round's record durable."""

    round: RoundNumber
    base_version: ModelVersion
    cohort: tuple[ClientId, ...]
    rollouts: str = ""  # digest of the batch, if the run asks for rewards


@dataclass(frozen=True, slots=True)
class RecordReceipt:
    """Makes the receipt durable; only then is the update acknowledged."""

    round: RoundNumber
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class WithdrawReceipt:
    """Removes the receipt, durably: the update no longer counts in its round. The log still has its arrival."""

    round: RoundNumber
    client: ClientId


@dataclass(frozen=True, slots=True)
class RecordEvaluation:
    """Makes the score durable."""

    score: Score


@dataclass(frozen=True, slots=True)
class Average:
    """Starts the averaging of these updates, which ends in ModelAveraged or AveragingFailed."""

    round: RoundNumber
    base_version: ModelVersion
    receipts: tuple[Receipt, ...]  # sorted by client
    weights: tuple[float, ...] = ()  # of the receipts, by weighting.weigh; empty if they follow from the receipts


@dataclass(frozen=True, slots=True)
class Publish:
    """Makes the next version current and closes the round, in one durable transaction."""

    round: RoundNumber
    version: ModelVersion
    digest: Digest
    receipts: tuple[Receipt, ...]
    moments: tuple[Digest, ...] = ()
    weights: tuple[float, ...] = ()  # as in Average


@dataclass(frozen=True, slots=True)
class Abandon:
    """Ends the round without a version, durably. Its receipts stay on record as unused, with the reason."""

    round: RoundNumber
    reason: str


@dataclass(frozen=True, slots=True)
class EndRun:
    """Ends the run, durably."""

    outcome: str
    reason: str


Effect = OpenRound | RecordReceipt | WithdrawReceipt | RecordEvaluation | Average | Publish | Abandon | EndRun

_ADAPTERS: dict[str, TypeAdapter[Any]] = {kind.__name__: TypeAdapter(kind) for kind in Event.__args__}


def event_kind(event: Event) -> str:
    """The name an event is stored under."""
    return type(event).__name__


def event_to_facts(event: Event) -> dict[str, Any]:
    """An event as JSON-ready values."""
    facts: dict[str, Any] = _ADAPTERS[event_kind(event)].dump_python(event, mode="json")
    return facts


def event_from_facts(kind: str, facts: dict[str, Any]) -> Event:
    """The event that `event_to_facts` wrote. Raises KeyError or ValueError for a log that this release cannot read."""
    event: Event = _ADAPTERS[kind].validate_python(facts)
    return event
