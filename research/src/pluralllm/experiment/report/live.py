"""A live run as the coordinator tells it, in plain values, brought into the shape figures are drawn from."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pluralllm.common.words.names import RoundName, RunName

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Told:
    """What the coordinator answered. What this person's role may not see is None."""

    run: Values
    rounds: Sequence[Values]  # any order
    evaluations: Sequence[Values]  # any order
    members: Sequence[Values] | None = None
    model: Values | None = None  # record of the current version
    model_bytes: int | None = None
    spec: Values | None = None


@dataclass(frozen=True, slots=True)
class RoundRow:
    number: int
    outcome: str
    reason: str
    version: int | None
    cohort: int
    updates: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Series:
    """One group's scores, by the round that made the version; version 0 is round 0."""

    group: str
    role: str  # train or held_out
    rounds: tuple[int, ...]
    scores: tuple[float, ...]
    questions: int  # of the newest score


@dataclass(frozen=True, slots=True)
class LiveRun:
    """Load it with `live_run`."""

    told: Told
    name: str
    rounds: tuple[RoundRow, ...]  # oldest first
    series: tuple[Series, ...]  # by role and group

    def of_role(self, role: str) -> tuple[Series, ...]:
        return tuple(series for series in self.series if series.role == role)


def live_run(told: Told) -> LiveRun:
    rows = tuple(sorted((_round(values) for values in told.rounds), key=lambda row: row.number))
    made_in = {0: 0} | {row.version: row.number for row in rows if row.version is not None}
    found: dict[tuple[str, str], dict[int, list[Values]]] = {}
    for score in told.evaluations:
        number = made_in.get(int(score["version"]), int(score["version"]))
        found.setdefault((score["role"], score["group"]), {}).setdefault(number, []).append(score)
    series = []
    for (role, group), by_round in sorted(found.items()):
        numbers = sorted(by_round)
        means = [sum(s["alignment_score"] for s in by_round[n]) / len(by_round[n]) for n in numbers]
        questions = max(score["questions"] for score in by_round[numbers[-1]])
        series.append(Series(group, role, tuple(numbers), tuple(means), questions))
    return LiveRun(told, RunName.parse(told.run["name"]).run, rows, tuple(series))


def common_rounds(series: Sequence[Series]) -> tuple[int, ...]:
    """Where every one of these groups was evaluated: only there are a mean, a worst group and a spread of the same groups."""
    if not series:
        return ()
    shared = set(series[0].rounds).intersection(*(each.rounds for each in series[1:]))
    return tuple(sorted(shared))


def at_round(series: Sequence[Series], number: int) -> dict[str, float]:
    """Each group's score there."""
    return {each.group: each.scores[each.rounds.index(number)] for each in series if number in each.rounds}


def moved_bytes(live: LiveRun) -> list[int] | None:
    """After each round, counted from the size of a version: down to the cohort, and up with each update. None if not known."""
    size = live.told.model_bytes
    if size is None:
        return None
    found, total = [], 0
    for row in live.rounds:
        total += size * (row.cohort + row.updates)
        found.append(total)
    return found


def _round(values: Values) -> RoundRow:
    begun, ended = (datetime.datetime.fromisoformat(values[key]) for key in ("create_time", "update_time"))
    return RoundRow(
        RoundName.parse(values["name"]).number,
        str(values["outcome"]),
        str(values["reason"]),
        values["version"],
        len(values["cohort"]),
        len(values["receipts"]),
        max(0.0, (ended - begun).total_seconds()),
    )
