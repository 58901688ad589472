"""Imports preferences between candidates and adds up the ballots of equal candidates into questions.

The private file, training, evaluation and scoring are the same as for surveys. The order of the options must not reveal which
candidate was chosen, so an import sorts the options by their hash.
"""

import difflib
import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pluralllm.client.data.counted_question import CountedQuestion, shares_of
from pluralllm.client.data.preferences.ballots import UNREADABLE, Ballot, at
from pluralllm.client.data.preferences.layouts import LAYOUTS, recognised
from pluralllm.client.data.preferences.mapped import mapped_row
from pluralllm.client.data.preferences.rows import groups_of, plain_ballot
from pluralllm.client.data.preferences.scores import NOT_SAID, ScoreMeaning
from pluralllm.client.data.table import bad_rows, plain_text
from pluralllm.client.data.tables import table_rows
from pluralllm.common.errors.tree import InvalidArgument, InvalidData

MAX_NAMES_SHOWN = 8
MAX_LINES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Reading:
    """How a file is to be read."""

    group: str | None = None  # only ballots of this group count; None: all
    group_column: str | None = None  # the column or path that names the group; None: `group`, or votes listed by group
    layout: str | None = None  # a name of LAYOUTS; None: our own layout
    columns: Mapping[str, str] | None = None  # of --map
    scores: ScoreMeaning | None = None  # what scores mean; None: not said
    is_direction_said: bool = False  # whether the partner has said if a lower score is better
    most_bad: float | None = None  # per cent of rows that may be left out because they cannot be used; None: no row
    encoding: str | None = None  # of a text file; None: found
    delimiter: str | None = None


@dataclass(frozen=True, slots=True)
class Imported:
    """The questions of a file, and what was left out."""

    questions: tuple[CountedQuestion, ...]
    rows: int  # that were read for the group
    bad: tuple[tuple[int, str], ...] = ()  # line and reason of each row that was left out
    alone: int = 0  # prompts with a single scored candidate, which nothing is compared with

    def notes(self) -> list[str]:
        """Returns one line of text for each reason why rows were left out."""
        lines: dict[str, list[int]] = defaultdict(list)
        for line, reason in self.bad:
            lines[reason].append(line)
        sentences = [f"{self.alone} prompts have a single scored candidate and were left out"] if self.alone else []
        for reason, numbers in sorted(lines.items(), key=lambda item: -len(item[1])):
            shown = ", ".join(map(str, numbers[:MAX_LINES_SHOWN])) + (", ..." if len(numbers) > MAX_LINES_SHOWN else "")
            sentences.append(f"{len(numbers)} of {self.rows} rows left out (line {shown}): {reason}")
        return sentences


@dataclass(slots=True)
class Box:
    """The ballots that were cast so far, added up by prompt and candidates."""

    votes: dict[tuple[str, tuple[str, ...]], dict[str, float]] = field(default_factory=dict)
    uncounted: set[tuple[str, tuple[str, ...]]] = field(default_factory=set)  # with a ballot that is no whole votes
    single: dict[tuple[str, str], dict[str, list[float]]] = field(default_factory=dict)  # scores of single candidates

    def cast(self, ballot: Ballot, meaning: ScoreMeaning | None) -> None:
        """Adds a valid ballot. Scores become shares by their meaning, and a single candidate's score waits for the others."""
        if meaning is not None and ballot.meaning == "scores" and len(ballot.candidates) == 1:
            scores = self.single.setdefault((ballot.prompt, str(ballot.facts.get("lp", ""))), {})
            scores.setdefault(ballot.candidates[0], []).append(ballot.numbers[0])
            return
        numbers: Sequence[float] = ballot.numbers
        if meaning is not None and ballot.meaning == "scores":
            numbers = meaning.shares(ballot.numbers)
        if ballot.weight is not None:
            numbers = [one * ballot.weight for one in numbers]
        options = tuple(sorted(ballot.candidates, key=lambda text: hashlib.sha256(text.encode()).digest()))
        votes = self.votes.setdefault((ballot.prompt, options), dict.fromkeys(options, 0.0))
        whole = ballot.meaning == "votes" and ballot.weight is None and all(one == int(one) for one in numbers)
        if not whole:  # a tie is half a vote for each: no whole person has chosen either
            self.uncounted.add((ballot.prompt, options))
        for option, one in zip(ballot.candidates, numbers, strict=True):
            votes[option] += one

    def compare_single(self, meaning: ScoreMeaning) -> int:
        """Casts the mean scores of each prompt's single candidates. Returns how many prompts have only one candidate."""
        alone = 0
        for (prompt, _), scores in self.single.items():
            means = tuple(math.fsum(values) / len(values) for values in scores.values())
            if len(means) < 2:
                alone += 1
            else:
                self.cast(Ballot(prompt, tuple(scores), means, "scores"), meaning)
        return alone

    def questions(self) -> tuple[CountedQuestion, ...]:
        """Returns a question for each prompt with its candidates; with counts where every vote is the vote of one person."""
        return tuple(_counted(*key, votes, is_counted=key not in self.uncounted) for key, votes in self.votes.items())


def import_preferences(path: Path, group: str | None) -> tuple[CountedQuestion, ...]:
    """Imports the preferences of one group from a file of our own layout; None means that all rows count."""
    return read_preferences(path, Reading(group)).questions


def read_preferences(path: Path, reading: Reading) -> Imported:
    """Imports the preferences of a file; adds up the votes of rows with equal candidates.

    The result has counts where every vote is the vote of one person: ties, weights, shares and scores give shares only.
    Raises InvalidData if the file cannot be read, too many rows are faulty, or no row belongs to the group; InvalidArgument
    if an option is missing, or names what the file does not have.
    """
    _check_layout(reading)
    rows = list(table_rows(path, encoding=reading.encoding, delimiter=reading.delimiter))
    if rows and reading.layout is None and reading.columns is None:
        _check_own(path, rows[0][1])
    box, groups, read, bad = Box(), set[str](), 0, list[tuple[int, str]]()
    has_scores = False
    for line, row in rows:
        row_groups = _groups(row, reading)
        groups |= row_groups
        if reading.group is not None and row_groups and reading.group not in row_groups:
            continue
        read += 1
        try:
            ballots = list(_ballots(row, reading))
            for ballot in ballots:
                ballot.check()
        except UNREADABLE as error:
            bad.append((line, f"no {error.args[0]}" if isinstance(error, KeyError) else str(error)))
            continue
        for ballot in ballots:
            its_groups = _groups(ballot.facts, reading) or row_groups
            groups |= its_groups
            if reading.group is None or reading.group in its_groups:
                has_scores = has_scores or ballot.meaning == "scores"
                if has_scores and reading.scores is None:
                    raise InvalidArgument(field="--scores", problem=NOT_SAID)
                box.cast(ballot, reading.scores)
    _check_bad(path, bad, read, reading.most_bad)
    if reading.group is not None and reading.group not in groups:
        raise _no_group(path, reading, groups)
    if reading.scores is not None and not has_scores:
        raise InvalidArgument(field="--scores", problem="the rows have votes, no scores; leave the option out")
    alone = 0 if reading.scores is None else box.compare_single(reading.scores)
    return Imported(box.questions(), read, tuple(bad), alone)


def _check_layout(reading: Reading) -> None:
    """Raises InvalidArgument if the layout is unknown, or needs a direction of its scores that was not said."""
    if reading.layout is not None and reading.layout not in LAYOUTS:
        near = difflib.get_close_matches(reading.layout, LAYOUTS, n=1, cutoff=0.5)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise InvalidArgument(
            field="--layout", problem=f"no layout {reading.layout!r}{meant}; there is: {', '.join(LAYOUTS)}"
        )
    if reading.layout and LAYOUTS[reading.layout].asks_direction and not reading.is_direction_said:
        problem = (
            "releases of this data set differ in the sign of the score; add --lower-is-better or --higher-is-better"
        )
        raise InvalidArgument(field="--layout", problem=problem)


def _ballots(row: Mapping[str, Any], reading: Reading) -> Iterator[Ballot]:
    """Yields the ballots of a row. Raises one of UNREADABLE if the row is faulty."""
    if reading.layout is not None:
        yield from LAYOUTS[reading.layout].read(row)
    elif reading.columns is not None:
        yield plain_ballot(mapped_row(row, reading.columns), reading.group)
    else:
        yield plain_ballot(row, reading.group)


def _groups(row: Mapping[str, Any], reading: Reading) -> set[str]:
    """Returns the groups that a row, or the facts of a ballot, names."""
    column = reading.group_column or (reading.columns or {}).get("group")
    if column is None:
        return groups_of(row)
    value = at(row, column)
    return set() if value is None or value == "" else {plain_text(value)}


def _check_own(path: Path, row: Mapping[str, Any]) -> None:
    """Raises InvalidData if a file of which no layout was named has the columns of a public layout."""
    names = recognised(row)
    if names:
        flags = " or ".join(f"--layout {name}" for name in names)
        raise InvalidData(
            file=str(path), problems=f"  this looks like {names[0]}: add {flags}, or name columns by --map"
        )


def _check_bad(path: Path, bad: Sequence[tuple[int, str]], rows: int, most: float | None) -> None:
    """Raises InvalidData if more rows are faulty than may be left out. most: per cent of the rows; None for none."""
    if not bad or (most is not None and len(bad) <= rows * most / 100):
        return
    share = f"{100 * len(bad) / rows:.3g} % of {rows} rows cannot be used"
    limit = "--skip-bad PERCENT leaves them out" if most is None else f"more than --skip-bad {most:g}"
    raise bad_rows(path, bad, f"{share}; {limit}")


def _no_group(path: Path, reading: Reading, groups: set[str]) -> InvalidData:
    """Returns the error for a group that no row names."""
    if not groups:
        missing = f"no row has a value in {reading.group_column or 'group'}; name its column by --group-column"
        return InvalidData(file=str(path), problems=f"  {missing}")
    shown = ", ".join(sorted(groups)[:MAX_NAMES_SHOWN])
    return InvalidData(file=str(path), problems=f"  no group {reading.group!r}; there is: {shown}")


def _counted(text: str, options: tuple[str, ...], votes: Mapping[str, float], *, is_counted: bool) -> CountedQuestion:
    """Returns a question from the votes for each option. Votes are counts if each is the vote of one person."""
    numbers = tuple(votes[option] for option in options)
    total = math.fsum(numbers)
    if not is_counted:
        return CountedQuestion(text, options, shares_of(numbers, total))
    return CountedQuestion(text, options, shares_of(numbers, total), counts=numbers, respondents=round(total))
