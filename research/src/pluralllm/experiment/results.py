"""Reads an experiment's results from a folder of JSON Lines files, one for each method and seed, and checks them.

The module imports numpy only, because reading results must not need torch.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.errors.tree import InvalidResults
from pluralllm.common.text.reading import Unreadable, byte_lines, json_value

Record = dict[str, Any]
Floats = NDArray[np.float64]
AXES = ("rounds", "gradient_steps", "episodes", "moved_bytes", "seconds")
PARTS = ("test", "validation", "train")
COLUMNS = 5  # of a scored question: id, kind, distance, log standard deviation, error


class QuestionKind(StrEnum):
    """Kind of a scored question, which says whether training could use the question.

    Either a training group answered the question, or no training group answered it, or the question is withheld from all
    training.
    """

    ANSWERED = "a"  # some training group trains on it
    UNANSWERED = "u"  # no training group answered it
    WITHHELD = "w"  # excluded from every group's training, chosen by hash


@dataclass(frozen=True, slots=True)
class Point:
    """One moment of a method's training: the cost so far on every axis, and each group's alignment score.

    The axes of cost are rounds, gradient steps, episodes, bytes moved and seconds.
    """

    cost: Mapping[str, float]  # by axis
    alignment: Mapping[str, float]  # by group


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one group's questions for one number of context questions, in columns with one row for each score.

    The context is drawn several times. A question has one row for each draw in which it is a target question.
    """

    group: str
    part: str
    context: int
    draw: NDArray[np.int64]
    question: NDArray[np.int64]  # `question_number` of its id
    kind: NDArray[np.str_]  # `QuestionKind`
    distance: Floats  # Jensen-Shannon, natural logarithm
    log_std: Floats  # NaN where none is predicted
    error: Floats  # root mean square of predicted minus true share


@dataclass(frozen=True, slots=True)
class ContextScores:
    """Alignment scores of one group for the same questions with its own context, and with other groups' contexts."""

    group: str
    part: str
    context: int
    own: float
    another: float

    @property
    def gain(self) -> float:
        """The context gain. Near 0, the predictions do not depend on the group."""
        return self.own - self.another


@dataclass(frozen=True, slots=True)
class Distribution:
    """Predicted and true shares of a question's options in one group."""

    group: str
    part: str
    question: str
    options: tuple[str, ...]
    true: tuple[float, ...]
    predicted: tuple[float, ...]
    context: int


@dataclass(frozen=True, slots=True)
class Result:
    """Result of one method with one seed, as read from its file."""

    header: Record
    points: tuple[Point, ...]
    scores: tuple[Scores, ...]
    distributions: tuple[Distribution, ...]
    gains: tuple[ContextScores, ...] = ()  # empty for a baseline and in results of earlier releases
    # Number of options by `question_number`; empty in results of earlier releases.
    options: Mapping[int, int] = field(default_factory=dict)

    @property
    def method(self) -> str:
        return str(self.header["method"])

    @property
    def seed(self) -> int:
        return int(self.header["seed"])


def read_results(folder: Path) -> tuple[Result, ...]:
    """Returns every result in a folder, sorted by method and seed.

    Raises InvalidResults if there is no result, or if a result is incomplete. Also raises InvalidResults if two results belong
    to different experiments or data, or have the same method and seed.
    """
    if not folder.is_dir():
        raise InvalidResults(path=str(folder), problem="there is no such folder")
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        problem = "there is no *.jsonl in it; make some first: pluralllm experiment run SPEC.toml --out FOLDER"
        raise InvalidResults(path=str(folder), problem=problem)
    results = [read_result(path) for path in paths]
    for path, result in zip(paths, results, strict=True):
        for key, what in (("experiment_sha256", "experiment"), ("data_sha256", "data")):
            digest, first = result.header[key], results[0].header[key]
            if digest != first:
                problem = (
                    f"{path.name} and {paths[0].name} are of different {what} ({str(digest)[:8]} and {str(first)[:8]}); "
                    "keep each experiment in a folder of its own"
                )
                raise InvalidResults(path=str(folder), problem=problem)
    seen: dict[tuple[str, int], Path] = {}
    for path, result in zip(paths, results, strict=True):
        before = seen.setdefault((result.method, result.seed), path)
        if before is not path:
            problem = f"{before.name} and {path.name} both hold {result.method} with seed {result.seed}; take one away"
            raise InvalidResults(path=str(folder), problem=problem)
    return tuple(sorted(results, key=lambda result: (result.method, result.seed)))


def read_result(path: Path) -> Result:
    """Reads one result file. Raises InvalidResults, with the number of the faulty line, if the file is damaged or incomplete."""
    points: list[Point] = []
    scores: list[Scores] = []
    distributions: list[Distribution] = []
    gains: list[ContextScores] = []
    options: dict[int, int] = {}
    header: Record | None = None
    number = 0
    try:
        for number, line in enumerate(byte_lines(path), 1):  # noqa: B007 - the errors below report it
            record = json_value(line)
            match record["kind"]:
                case "header":
                    header = _header(record)
                case "point":
                    points.append(_point(record))
                case "final":
                    scores.append(_scores(record))
                case "distribution":
                    distributions.append(_distribution(record))
                case "context_gain":
                    gains.append(_context_scores(record))
                case "options":
                    options |= {question_number(str(key)): int(count) for key, count in record["counts"].items()}
    except Unreadable as error:
        raise InvalidResults(path=str(path), problem=error.problem) from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InvalidResults(path=str(path), problem=_broken(number, error)) from error
    if header is None:
        raise InvalidResults(path=str(path), problem="it has no header; delete it and run the experiment again")
    if not scores:
        problem = "it ends before the final scores; delete it and run the experiment again, which makes what is missing"
        raise InvalidResults(path=str(path), problem=problem)
    return Result(header, tuple(points), tuple(scores), tuple(distributions), tuple(gains), options)


@cache
def question_number(question_id: str) -> int:
    """Returns a number that stands for a question id; the number is the same in every process.

    Results compare millions of ids, and numbers are smaller and faster to compare than strings.
    """
    return int.from_bytes(hashlib.sha256(question_id.encode()).digest()[:7])


def _broken(line: int, error: Exception) -> str:
    facts = {KeyError: f"{error} is missing", json.JSONDecodeError: "not whole JSON"}.get(type(error), str(error))
    return f"line {line}: {facts}; delete the file and run the experiment again, which makes what is missing"


def _header(record: Record) -> Record:
    needed = ("method", "seed", "experiment_sha256", "data_sha256")
    missing = [key for key in needed if key not in record]
    if missing:
        raise ValueError(f"the header lacks {', '.join(missing)}")
    return record


def _point(record: Record) -> Point:
    cost = {axis: float(record[axis]) for axis in AXES}
    return Point(cost, {str(group): float(score) for group, score in record["alignment"].items()})


def _scores(record: Record) -> Scores:
    draws: Sequence[Sequence[Sequence[Any]]] = record["draws"]
    rows = [row for draw in draws for row in draw]
    if any(len(row) != COLUMNS for row in rows):
        raise ValueError(f"a scored question must have {COLUMNS} columns")
    numbers = np.array([[row[2], np.nan if row[3] is None else row[3], row[4]] for row in rows], dtype=np.float64)
    numbers = numbers.reshape(-1, 3)  # (rows, 3): distance, log std, error; also if there are no rows
    return Scores(
        str(record["group"]),
        str(record["part"]),
        int(record["context"]),
        np.repeat(np.arange(len(draws)), [len(draw) for draw in draws]),
        np.array([question_number(row[0]) for row in rows], dtype=np.int64),
        np.array([QuestionKind(row[1]) for row in rows], dtype="U1"),
        numbers[:, 0],
        numbers[:, 1],
        numbers[:, 2],
    )


def _context_scores(record: Record) -> ContextScores:
    scores = float(record["own"]), float(record["another"])
    return ContextScores(str(record["group"]), str(record["part"]), int(record["context"]), *scores)


def _distribution(record: Record) -> Distribution:
    distribution = Distribution(
        str(record["group"]),
        str(record["part"]),
        str(record["question_text"]),
        tuple(str(option) for option in record["options"]),
        tuple(float(share) for share in record["true"]),
        tuple(float(share) for share in record["predicted"]),
        int(record["context"]),
    )
    if not len(distribution.options) == len(distribution.true) == len(distribution.predicted):
        raise ValueError("options, true and predicted shares are not equally many")
    return distribution
