"""Turns the coordinator's answers about a live run into the series and rows that the report's figures and tables use.

A series holds one group's scores over the rounds. A row holds the values of one round, such as its number and duration.
"""

import datetime
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pluralllm.common.words.context_gain import mean_gain
from pluralllm.common.words.names import RoundName, RunName
from pluralllm.common.words.not_reported import not_reported_text

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers of the coordinator about a run; an answer is None if the caller's role may not read it."""

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
    """Alignment scores that one group has reported, each with the round that made the scored model version.

    Model version 0, which no round made, counts as round 0. A group that has never reported a score has no scores here.
    """

    group: str
    role: str  # train or held_out
    rounds: tuple[int, ...]
    scores: tuple[float, ...]
    questions: int  # number of questions in the newest score
    context_gain: float | None = (
        None  # mean of the newest scores' context gains; None if the group does not report them
    )
    not_reported: str = ""  # why the group's newest evaluation has no score; empty if it has one

    def at(self, number: int) -> float | None:
        """Returns the score at a round; None if the group reported none there."""
        place = bisect_left(self.rounds, number)
        there = place < len(self.rounds) and self.rounds[place] == number
        return self.scores[place] if there else None

    @property
    def score_without_context(self) -> float | None:
        """The newest score with uniform answers as context: the score minus the context gain; None if one is not known."""
        return None if self.context_gain is None or self.not_reported else self.scores[-1] - self.context_gain


@dataclass(frozen=True, slots=True)
class LiveRun:
    """Rounds and scores of a live run, ready for figures and tables. `live_run` makes it from the coordinator's answers."""

    answers: Answers
    name: str
    rounds: tuple[RoundRow, ...]  # oldest first
    series: tuple[Series, ...]  # by role and group

    def of_role(self, role: str) -> tuple[Series, ...]:
        return tuple(series for series in self.series if series.role == role)

    def scored(self, role: str) -> tuple[Series, ...]:
        """Returns the series of the groups with a role that have ever reported a score."""
        return tuple(series for series in self.of_role(role) if series.scores)

    def reporting(self, role: str) -> tuple[Series, ...]:
        """Returns the series of the groups with a role that report their newest score. Means and worst groups are over these."""
        return tuple(series for series in self.of_role(role) if not series.not_reported)


def live_run(answers: Answers) -> LiveRun:
    """Sorts the rounds and evaluations in the coordinator's answers, and returns them ready for figures and tables.

    If a group has several scores for the same round, the scores are averaged. A group that does not report its scores stays in
    the result, with the reason.
    """
    rows = tuple(sorted((_round(values) for values in answers.rounds), key=lambda row: row.number))
    made_in = {0: 0} | {row.version: row.number for row in rows if row.version is not None}
    evaluations: dict[tuple[str, str], dict[int, list[Values]]] = {}
    for evaluation in answers.evaluations:
        number = made_in.get(int(evaluation["version"]), int(evaluation["version"]))
        key = evaluation["role"], evaluation["group"]
        evaluations.setdefault(key, {}).setdefault(number, []).append(evaluation)
    series = tuple(_series(group, role, by_round) for (role, group), by_round in sorted(evaluations.items()))
    return LiveRun(answers, RunName.parse(answers.run["name"]).run, rows, series)


def _series(group: str, role: str, by_round: Mapping[int, Sequence[Values]]) -> Series:
    reported = {
        number: scores
        for number in sorted(by_round)
        if (scores := [one for one in by_round[number] if one["alignment_score"] is not None])
    }
    means = [sum(one["alignment_score"] for one in scores) / len(scores) for scores in reported.values()]
    newest = max(by_round)
    latest = reported[max(reported)] if reported else []
    questions = max((one["questions"] for one in latest), default=0)
    gain = mean_gain(one.get("context_gain") for one in latest)
    reason = "" if newest in reported else not_reported_text(by_round[newest][0]["not_reported"])
    return Series(group, role, tuple(reported), tuple(means), questions, gain, reason)


def common_rounds(series: Sequence[Series]) -> tuple[int, ...]:
    """Returns the numbers of the rounds in which every group reported a score, so that these rounds can be compared."""
    if not series:
        return ()
    shared = set(series[0].rounds).intersection(*(other.rounds for other in series[1:]))
    return tuple(sorted(shared))


def at_round(series: Sequence[Series], number: int) -> dict[str, float]:
    """Returns each group's score in one round, by group; leaves out groups that have no score in this round."""
    scores = ((curve.group, curve.at(number)) for curve in series)
    return {group: score for group, score in scores if score is not None}


def moved_bytes(live: LiveRun) -> list[int] | None:
    """Returns, for each round, the bytes of weights moved up to the end of this round.

    A round moves one model version to each client of its cohort, and as many bytes back with each update.
    Returns None if the size of a model version is not known.
    """
    size = live.answers.model_bytes
    if size is None:
        return None
    totals, total = [], 0
    for row in live.rounds:
        total += size * (row.cohort + row.updates)
        totals.append(total)
    return totals


def _round(values: Values) -> RoundRow:
    begun, ended = (datetime.datetime.fromisoformat(values[key]) for key in ("create_time", "update_time"))
    return RoundRow(
        RoundName.parse(values["name"]).number,
        str(values["outcome"]),
        str(values["reason"]),
        values["version"],
        values["cohort_size"],
        values["updates"],
        max(0.0, (ended - begun).total_seconds()),
    )
