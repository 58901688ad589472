"""The events of a run as types, so that a program can tell them apart by class."""

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Values = Mapping[str, Any]
Shared = tuple[str, int, datetime.datetime, str, Values]  # the fields of Event


@dataclass(frozen=True, slots=True)
class Event:
    """Something that has happened in a run. docs/reference/events.md lists the kinds and their facts."""

    run: str
    sequence: int  # rises by one with each event of the run
    time: datetime.datetime
    kind: str  # a verb in the past tense, such as UpdateArrived
    facts: Values


@dataclass(frozen=True, slots=True)
class RunChanged(Event):
    """An administrator has started, paused, resumed, cancelled, archived or unarchived the run; `kind` says which."""


@dataclass(frozen=True, slots=True)
class UpdateArrived(Event):
    """A client has delivered its update of a round."""

    round: int
    client: str
    examples: int  # number of training questions, which is the update's weight


@dataclass(frozen=True, slots=True)
class UpdateRefused(Event):
    """The coordinator has refused a client's update."""

    round: int
    client: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class ClientLost(Event):
    """A client has lost its slot in the round."""

    client: str
    reason: str


@dataclass(frozen=True, slots=True)
class ScoreArrived(Event):
    """A client has measured how well a model version predicts its group. A score that is not reported is None."""

    group: str
    client: str
    version: int
    alignment_score: float | None
    context_gain: float | None


@dataclass(frozen=True, slots=True)
class ModelPublished(Event):
    """A round has made a new model version."""

    round: int


def event_of(run: str, values: Values) -> Event:
    """Returns an event as the operator's client gives it, as the class of its kind.

    An event of another kind, or one that lacks a fact because another release has made it, is a plain Event.
    """
    time = datetime.datetime.fromisoformat(values["time"])
    facts: Values = values["facts"]
    shared: Shared = (run, int(values["sequence"]), time, str(values["kind"]), facts)
    make = _MAKERS.get(shared[3])
    if make is None:
        return Event(*shared)
    try:
        return make(shared, facts)
    except (KeyError, TypeError, ValueError):
        return Event(*shared)


def _changed(shared: Shared, _facts: Values) -> Event:
    return RunChanged(*shared)


def _arrived(shared: Shared, facts: Values) -> Event:
    receipt = facts["receipt"]
    return UpdateArrived(*shared, int(facts["round"]), str(receipt["client"]), int(receipt["examples"]))


def _refused(shared: Shared, facts: Values) -> Event:
    reasons = str(facts.get("reason", "")), str(facts.get("message", ""))  # only an administrator is told
    return UpdateRefused(*shared, int(facts["round"]), str(facts["client"]), *reasons)


def _lost(shared: Shared, facts: Values) -> Event:
    return ClientLost(*shared, str(facts["client"]), str(facts.get("reason", "")))


def _scored(shared: Shared, facts: Values) -> Event:
    score = facts["score"]
    place = str(score["group"]), str(score["client"]), int(score["version"])
    return ScoreArrived(*shared, *place, _number(score.get("alignment_score")), _number(score.get("context_gain")))


def _published(shared: Shared, facts: Values) -> Event:
    return ModelPublished(*shared, int(facts["round"]))


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


_MAKERS: dict[str, Callable[[Shared, Values], Event]] = {
    **dict.fromkeys(("RunStarted", "RunPaused", "RunResumed", "RunCancelled"), _changed),
    **dict.fromkeys(("RunArchived", "RunUnarchived"), _changed),
    "UpdateArrived": _arrived,
    "UpdateRefused": _refused,
    "PlaceLost": _lost,
    "EvaluationArrived": _scored,
    "ModelAveraged": _published,
}
