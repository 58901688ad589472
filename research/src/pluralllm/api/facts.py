"""The state of a run, its members and its models as types. Each is made from the plain values of the operator's client."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pluralllm.common.words.names import MemberName, ModelName, RoundName, RunName

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Participant:
    """A client of a run."""

    client: str
    group: str
    role: str  # train or held_out
    state: str
    reason: str  # why the client is late, lost or idle; otherwise empty


@dataclass(frozen=True, slots=True)
class GroupScore:
    """How well a model version predicts a group, as the group's client has measured it. A score that it keeps is None."""

    group: str
    role: str  # train or held_out
    version: int
    alignment_score: float | None  # 1 minus the mean Jensen-Shannon distance, natural logarithm
    context_gain: float | None  # near 0, the predictions do not depend on the group
    questions: int


@dataclass(frozen=True, slots=True)
class RunState:
    """The state of a run at one moment. `values` holds all that `pluralllm status --json` prints."""

    name: str
    phase: str  # created, collecting, evaluating, ended and others
    paused: bool
    outcome: str
    outcome_reason: str
    round: int
    rounds: int
    version: int  # of the newest model
    next: str  # one sentence: what happens next, and what the run waits for
    blocked: str  # why the run stands still until owners of clients act; empty if it goes on
    participants: tuple[Participant, ...]
    scores: tuple[GroupScore, ...]  # the latest one of each group
    archived: bool  # whether lists leave the run out
    values: Values

    @property
    def is_over(self) -> bool:
        """Whether the run has ended."""
        return self.phase == "ended"


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the federation, or somebody who is invited. `values` holds all that `pluralllm members --json` prints."""

    name: str
    role: str  # client, observer or admin
    state: str
    group: str
    live: bool  # whether the client's daemon is connected
    values: Values


@dataclass(frozen=True, slots=True)
class Model:
    """A published model version."""

    run: str
    version: int
    round: int  # that made it; 0 for version 0
    clients: tuple[str, ...]  # whose updates are in it


def run_state(values: Values) -> RunState:
    """Returns a run from the client's plain values."""
    people = tuple(
        Participant(*(one[key] for key in ("client", "group", "role", "state", "reason")))
        for one in values["participants"]
    )
    scores = tuple(map(group_score, values["evaluations"]))
    return RunState(
        name=RunName.parse(values["name"]).run,
        phase=values["phase"],
        paused=values["paused"],
        outcome=values["outcome"],
        outcome_reason=values["outcome_reason"],
        round=values["round"],
        rounds=values["rounds"],
        version=values["version"],
        next=values["next"],
        blocked=values["blocked"],
        participants=people,
        scores=scores,
        archived=values["archived"],
        values=values,
    )


def group_score(values: Values) -> GroupScore:
    """Returns a score from the client's plain values."""
    keys = ("group", "role", "version", "alignment_score", "context_gain", "questions")
    return GroupScore(*(values[key] for key in keys))


def member(values: Values) -> Member:
    """Returns a member from the client's plain values."""
    name = MemberName.parse(values["name"]).member
    return Member(name, values["role"], values["state"], values["group"], values["live"], values)


def models(run: str, rounds: "list[dict[str, Any]]") -> list[Model]:
    """Returns the model versions of a run, oldest first. rounds: the run's rounds, newest first."""
    made = [
        Model(run, one["version"], _number_of(one["name"]), tuple(receipt["client"] for receipt in one["receipts"]))
        for one in reversed(rounds)
        if one["version"] is not None
    ]
    return [Model(run, 0, 0, ()), *made]


def _number_of(name: str) -> int:
    return int(RoundName.parse(name).number)


def model_name(run: str, version: int | None) -> ModelName:
    """Returns the name of a model version. version: None is the current one."""
    return ModelName.parse_short(run if version is None else f"{run}@{version}")
