"""The private file of a group: a JSONL or Parquet file with one question in each row. This module reads, checks and writes it.

A row has the fields question, options, and either shares or counts. A row may also have the fields scale (the position of each
option on a scale, null for an option off the scale), weight, respondents (the number of people who answered the question), and
question_key (a name that joins wordings and languages of one question, the same in all groups).
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pluralllm.client.data.counted_question import CountedQuestion, shares_of
from pluralllm.client.data.table import MAX_PROBLEMS_SHOWN
from pluralllm.common.errors.tree import InvalidData
from pluralllm.common.process.files import write_private
from pluralllm.common.text.reading import Unreadable, json_value, read_lines
from pluralllm.common.words.questions import Question, folded

SHARES_TOLERANCE = 0.02  # published shares are rounded
COUNTS_TOLERANCE = 1e-6  # a sum of weights is rounded

Number = Annotated[float, Field(allow_inf_nan=False)]


class Row(BaseModel):
    """One row of a private file. A validation error says what is wrong and how to correct the row."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str
    options: tuple[str, ...]
    shares: tuple[Number, ...] | None = None
    counts: tuple[Number, ...] | None = None
    scale: tuple[Number | None, ...] | None = None
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    respondents: Annotated[int, Field(ge=0)] | None = None
    question_key: str | None = None

    @model_validator(mode="after")
    def _answers_fit(self) -> Self:
        if not self.question.strip():
            raise ValueError("the question is empty; give its text")
        if self.question_key is not None and not folded(self.question_key):
            raise ValueError("question_key is empty; give a name, or leave it out")
        if len(self.options) < 2 or not all(option.strip() for option in self.options):
            raise ValueError(f"{len(self.options)} options, some may be empty; give at least 2, each with a text")
        if len(set(self.options)) < len(self.options):
            raise ValueError("an option is there twice; merge the two and add their shares")
        if (self.shares is None) == (self.counts is None):
            raise ValueError("give either shares or counts")
        name = "shares" if self.shares is not None else "counts"
        numbers = self.shares if self.shares is not None else self.counts or ()
        if len(numbers) != len(self.options):
            raise ValueError(f"{len(numbers)} {name} for {len(self.options)} options; give one for each")
        if min(numbers) < 0:
            raise ValueError(f"{name} has the negative number {min(numbers):g}; a share or count is 0 or more")
        if not math.isfinite(sum(numbers)):
            raise ValueError(f"{name} are too large to be added; divide them all by the same number")
        # A question with 0 respondents is kept: a file without it would show that nobody has answered.
        if sum(numbers) <= 0 and not (self.counts is not None and self.respondents == 0):
            raise ValueError(f"{name} are all 0; leave the question out")
        if self.shares is not None and abs(sum(numbers) - 1) > SHARES_TOLERANCE:
            raise ValueError(
                f"shares sum to {sum(numbers):.4g}, not to 1 (±{SHARES_TOLERANCE}); give counts instead, or mend them"
            )
        if self.scale is not None and len(self.scale) != len(self.options):
            raise ValueError(
                f"scale has {len(self.scale)} positions for {len(self.options)} options; give one for each, or null"
            )
        if self.respondents is not None:
            self._check_respondents(self.respondents)
        return self

    def _check_respondents(self, respondents: int) -> None:
        """Checks that no respondent can have added more than 1 to the counts. Raises ValueError otherwise."""
        if self.shares is not None and respondents == 0:
            raise ValueError("shares of 0 respondents; leave the question out")
        if math.fsum(self.counts or ()) > respondents + COUNTS_TOLERANCE:
            problem = f"counts sum to {math.fsum(self.counts or ()):.6g} for {respondents} respondents"
            raise ValueError(f"{problem}; the answers of one respondent to one question may sum to 1 at most")

    def to_question(self) -> Question:
        """Returns the row as a question whose shares are scaled to the sum 1, without the counts."""
        numbers = self.shares if self.shares is not None else self.counts or ()
        shares = shares_of(numbers, math.fsum(numbers))
        return Question(
            self.question.strip(), self.options, shares, self.scale, self.weight, stated_key=self.question_key
        )

    def to_counted(self) -> CountedQuestion:
        """Returns the row as a question with its counts."""
        bare = self.to_question()
        known = {field.name: getattr(bare, field.name) for field in fields(Question)}
        return CountedQuestion(**known, counts=self.counts or (), respondents=self.respondents)


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem in one line of a JSONL file or one row of a Parquet file: what is wrong, and how to correct it."""

    line: int
    text: str

    def __str__(self) -> str:
        return f"  line {self.line}: {self.text}"


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of reading a private file: the questions of its valid rows, and all its problems."""

    questions: tuple[Question, ...]  # that somebody has answered
    problems: tuple[Problem, ...]
    lines: int  # number of rows
    not_answered: tuple[Question, ...] = ()  # those of valid rows with 0 respondents

    @property
    def unanswered(self) -> int:
        """Number of questions that nobody has answered."""
        return len(self.not_answered)


def check_file(path: Path) -> Checked:
    """Reads a whole private file and collects all problems. Raises InvalidData only if the file cannot be read at all."""
    rows, problems, lines = _valid_rows(_rows(path))
    questions = tuple(row.to_question() for row in rows if row.respondents != 0)
    return Checked(questions, problems, lines, tuple(row.to_question() for row in rows if row.respondents == 0))


def read_group(path: Path) -> tuple[Question, ...]:
    """Returns the questions of a private file. Raises InvalidData with lines, problems and fixes if the file has any problem."""
    checked = check_file(path)
    _check_no_problem(path, checked.problems)
    if not checked.questions:
        raise InvalidData(file=str(path), problems="  it has no questions")
    return checked.questions


def read_counted(path: Path) -> tuple[CountedQuestion, ...]:
    """Returns the questions of a private file with their counts, also those that nobody has answered.

    Raises InvalidData as `read_group` does.
    """
    rows, problems, _ = _valid_rows(_rows(path))
    _check_no_problem(path, problems)
    if not rows:
        raise InvalidData(file=str(path), problems="  it has no questions")
    return tuple(row.to_counted() for row in rows)


def _valid_rows(rows: Iterable[tuple[int, dict[str, Any] | str]]) -> tuple[list[Row], tuple[Problem, ...], int]:
    """Returns the valid rows of a private file, the problems of all others, and the number of rows."""
    valid: list[Row] = []
    problems: list[Problem] = []
    first_line: dict[str, int] = {}
    lines = 0
    for line, values in rows:
        lines += 1
        if isinstance(values, str):
            problems.append(Problem(line, values))
            continue
        try:
            row = Row.model_validate(values)
        except ValidationError as error:
            problems += [Problem(line, _explain(detail)) for detail in error.errors(include_url=False)]
            continue
        question_id = row.to_question().id
        if question_id in first_line:
            text = f"the same question and options as line {first_line[question_id]}; keep one, or merge their counts"
            problems.append(Problem(line, text))
            continue
        first_line[question_id] = line
        valid.append(row)
    return valid, tuple(problems), lines


def _check_no_problem(path: Path, problems: Sequence[Problem]) -> None:
    """Raises InvalidData, which lists the first problems of a private file, if there are any."""
    if problems:
        lines = [str(problem) for problem in problems[:MAX_PROBLEMS_SHOWN]]
        if len(problems) > MAX_PROBLEMS_SHOWN:
            lines.append(f"  and {len(problems) - MAX_PROBLEMS_SHOWN} more: pluralllm-client data check {path}")
        raise InvalidData(file=str(path), problems="\n".join(lines))


def write_group(path: Path, questions: Iterable[Question]) -> None:
    """Writes questions as a private file: as Parquet if the path ends in .parquet, otherwise as JSONL.

    A question with counts is written with its counts in place of its shares. Only the owner can read a new file.

    Raises InvalidData, before anything is written, if a reader of the file would refuse a question; StorageFull if the disk is
    full. An interruption leaves either the complete new file or the file as it was before.
    """
    questions = tuple(questions)
    present = [{key: value for key, value in _record(one).items() if value is not None} for one in questions]
    _, problems, _ = _valid_rows(enumerate(present, 1))
    if problems:
        lines = [f"  question {problem.line}: {problem.text}" for problem in problems[:MAX_PROBLEMS_SHOWN]]
        raise InvalidData(file=str(path), problems="\n".join(["  it is not written:", *lines]))
    if path.suffix == ".parquet":
        from pluralllm.client.data.parquet import question_table  # noqa: PLC0415 - pyarrow takes a moment

        write_private(path, question_table([_record(question) for question in questions]))
        return
    write_private(path, jsonl_of(questions))


def jsonl_of(questions: Iterable[Question]) -> bytes:
    """Returns the bytes of a private file in JSONL with these questions."""
    rows = [{key: value for key, value in _record(one).items() if value is not None} for one in questions]
    return ("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n").encode()


def _record(question: Question) -> dict[str, Any]:
    """Returns a question as a row of the private file; optional fields that have no value are None."""
    counted = question if isinstance(question, CountedQuestion) else CountedQuestion("", (), ())
    return {
        "question": question.text,
        "options": list(question.options),
        "shares": None if counted.counts else list(question.shares),
        "counts": list(counted.counts) or None,
        "scale": None if question.scale is None else list(question.scale),
        "weight": None if question.weight == 1.0 else question.weight,
        "respondents": counted.respondents,
        "question_key": question.stated_key,
    }


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yields the rows of a file, each with its line number. For a bad line, a text about the problem replaces the row."""
    try:
        if path.suffix == ".parquet":
            from pluralllm.client.data.parquet import read_table  # noqa: PLC0415 - pyarrow takes a moment

            for number, row in enumerate(read_table(path), 1):
                yield number, {key: value for key, value in row.items() if value is not None}
            return
        lines = read_lines(path)
    except Unreadable as error:
        raise InvalidData(file=str(path), problems=f"  {error.problem}") from error
    except ValueError as error:
        raise InvalidData(file=str(path), problems=f"  it cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json_value(line)
        except ValueError as error:
            yield number, f"not JSON ({error}); one JSON object a line"
            continue
        yield number, row if isinstance(row, dict) else "not a JSON object; one object a line"


def _explain(detail: Any) -> str:
    """Turns an error of pydantic's validation into a sentence for the person who corrects the file.

    detail: one item of the list that ValidationError.errors() returns.
    """
    key = ".".join(str(part) for part in detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        return f"{key}: unknown field; allowed: {', '.join(Row.model_fields)}"
    if detail["type"] == "finite_number":
        return f"{key}: is NaN or infinite; give a finite number or leave the question out"
    return f"{key}: {message}" if key else message
