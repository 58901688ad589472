"""The private file of a group: a JSONL or Parquet file with one question in each row. This module reads, checks and writes it.

A row has the fields question, options, and either shares or counts. A row may also have the fields scale (the position of each
option on a scale, null for an option off the scale) and weight.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pluralllm.common.errors.tree import InvalidData
from pluralllm.common.process.files import write_durably
from pluralllm.common.text.reading import Unreadable, json_value, read_lines
from pluralllm.common.words.questions import Question

SHARES_TOLERANCE = 0.02  # published shares are rounded
MAX_PROBLEMS_SHOWN = 20

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

    @model_validator(mode="after")
    def _answers_fit(self) -> Self:
        if not self.question.strip():
            raise ValueError("the question is empty; give its text")
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
        if sum(numbers) <= 0:
            raise ValueError(f"{name} are all 0; leave the question out")
        if self.shares is not None and abs(sum(numbers) - 1) > SHARES_TOLERANCE:
            raise ValueError(
                f"shares sum to {sum(numbers):.4g}, not to 1 (±{SHARES_TOLERANCE}); give counts instead, or mend them"
            )
        if self.scale is not None and len(self.scale) != len(self.options):
            raise ValueError(
                f"scale has {len(self.scale)} positions for {len(self.options)} options; give one for each, or null"
            )
        return self

    def to_question(self) -> Question:
        """Returns the row as a question whose shares are scaled to the sum 1."""
        numbers = self.shares if self.shares is not None else self.counts or ()
        total = math.fsum(numbers)
        shares = tuple(number / total for number in numbers)
        return Question(self.question.strip(), self.options, shares, self.scale, self.weight)


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

    questions: tuple[Question, ...]
    problems: tuple[Problem, ...]
    lines: int  # number of rows


def check_file(path: Path) -> Checked:
    """Reads a whole private file and collects all problems. Raises InvalidData only if the file cannot be read at all."""
    questions: list[Question] = []
    problems: list[Problem] = []
    first_line: dict[str, int] = {}
    lines = 0
    for line, row in _rows(path):
        lines += 1
        if isinstance(row, str):
            problems.append(Problem(line, row))
            continue
        try:
            question = Row.model_validate(row).to_question()
        except ValidationError as error:
            problems += [Problem(line, _explain(detail)) for detail in error.errors(include_url=False)]
            continue
        if question.id in first_line:
            text = f"the same question and options as line {first_line[question.id]}; keep one, or merge their counts"
            problems.append(Problem(line, text))
            continue
        first_line[question.id] = line
        questions.append(question)
    return Checked(tuple(questions), tuple(problems), lines)


def read_group(path: Path) -> tuple[Question, ...]:
    """Returns the questions of a private file. Raises InvalidData with lines, problems and fixes if the file has any problem."""
    checked = check_file(path)
    if checked.problems:
        lines = [str(problem) for problem in checked.problems[:MAX_PROBLEMS_SHOWN]]
        if len(checked.problems) > MAX_PROBLEMS_SHOWN:
            lines.append(f"  and {len(checked.problems) - MAX_PROBLEMS_SHOWN} more: pluralllm-client data check {path}")
        raise InvalidData(file=str(path), problems="\n".join(lines))
    if not checked.questions:
        raise InvalidData(file=str(path), problems="  it has no questions")
    return checked.questions


def write_group(path: Path, questions: Iterable[Question]) -> None:
    """Writes questions as a private file: as Parquet if the path ends in .parquet, otherwise as JSONL.

    Raises StorageFull if the disk is full. An interruption leaves either the complete new file or the file as it was before.
    """
    rows = [_record(question) for question in questions]
    if path.suffix == ".parquet":
        from pluralllm.client.data.parquet import question_table  # noqa: PLC0415 - pyarrow takes a moment

        write_durably(path, question_table(rows))
        return
    lines = [
        json.dumps({key: value for key, value in row.items() if value is not None}, ensure_ascii=False) for row in rows
    ]
    write_durably(path, ("\n".join(lines) + "\n").encode())


def _record(question: Question) -> dict[str, Any]:
    """Returns a question as a row of the private file; optional fields that have no value are None."""
    return {
        "question": question.text,
        "options": list(question.options),
        "shares": list(question.shares),
        "scale": None if question.scale is None else list(question.scale),
        "weight": None if question.weight == 1.0 else question.weight,
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
