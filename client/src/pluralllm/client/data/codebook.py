"""The codebook of a private file: every question that was asked, with its options, whether anybody has answered it or not.

An importer that knows what was asked keeps the codebook beside the private file, and a release of noised answers takes it from
there. The questions of a release must not follow from the answers, because which questions have answers is private.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pluralllm.client.data.survey_texts import text_of
from pluralllm.common.errors.tree import InvalidData
from pluralllm.common.process.files import write_durably
from pluralllm.common.text.reading import MAX_DATA_BYTES, Unreadable, read_json, read_text
from pluralllm.common.words.questions import Question

SUFFIX = ".codebook"  # added to the name of the private file


class Asked(BaseModel):
    """One question of a codebook."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str
    options: tuple[str, ...]


class Codebook(BaseModel):
    """Knowledge of an importer about a survey. The file is as private as the answers, because of the number in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    asked: tuple[Asked, ...] | None = None  # None: the importer has seen answers only
    most_answered: Annotated[int, Field(ge=0)] = 0  # most questions that one respondent has answered; 0: unknown


def codebook_beside(data: Path) -> Path:
    """Returns the path of the codebook beside a private file. A link to a private file is followed first."""
    file = data.resolve()
    return file.with_name(file.name + SUFFIX)


def keep_codebook(data: Path, questions: Sequence[Question] | None, most_answered: int = 0) -> None:
    """Writes the codebook of a private file that was imported, or removes the one of an earlier import if nothing is known.

    questions: all that were asked, in order; None: unknown. most_answered: by one respondent; 0: unknown.
    """
    path = codebook_beside(data)
    if questions is None and not most_answered:
        path.unlink(missing_ok=True)
        return
    asked = None if questions is None else tuple(Asked(question=q.text, options=q.options) for q in questions)
    book = Codebook(asked=asked, most_answered=most_answered)
    write_durably(path, book.model_dump_json().encode() + b"\n", mode=0o600)


def kept_codebook(data: Path) -> Codebook:
    """Returns the codebook beside a private file; an empty one if there is none. Raises InvalidData if it is damaged."""
    path = codebook_beside(data)
    if not path.exists():
        return Codebook()
    try:
        return Codebook.model_validate_json(read_text(path, MAX_DATA_BYTES))
    except Unreadable as error:
        raise InvalidData(file=str(path), problems=f"  {error.problem}") from error
    except ValidationError as error:
        raise InvalidData(file=str(path), problems="  it is no codebook; import the answers again") from error


def codebook_of(data: Path, options: Path | None) -> tuple[Question, ...]:
    """Returns the questions of the file `options`, or of the codebook beside a private file. All shares are equal.

    Raises InvalidData if there is neither, or if a file has another form.
    """
    if options is not None:
        return read_codebook(options)
    asked = kept_codebook(data).asked
    if asked is None:
        problem = (
            f"  no list of the questions that were asked is in {codebook_beside(data).name}. Write one,"
            ' {"Tea or coffee?": ["Tea", "Coffee"], ...} as JSON, and import the answers again with --options FILE, or type'
            " pluralllm-client data release --options FILE"
        )
        raise InvalidData(file=str(data), problems=problem)
    return _checked(codebook_beside(data), asked)


def read_codebook(path: Path) -> tuple[Question, ...]:
    """Returns the questions in a JSON file: an object that maps each question to its options, or a list of objects with both.

    All shares are equal. Raises InvalidData if the file has another form, or a question fewer than two different options.
    """
    try:
        listed = read_json(path)
    except Unreadable as error:
        raise InvalidData(file=str(path), problems=f"  {error.problem}") from error
    if not isinstance(listed, list):
        return _checked(path, [Asked(question=text, options=tuple(options)) for text, options in _pairs(path, listed)])
    try:
        return _checked(path, [Asked.model_validate_json(json.dumps(row)) for row in listed])
    except ValidationError as error:
        problem = '  give {"question": TEXT, "options": [TEXT, ...]} for each question'
        raise InvalidData(file=str(path), problems=problem) from error


def listed_options(path: Path) -> dict[str, list[str]]:
    """Reads the options of each question from a JSON file, all texts in the form of `text_of`.

    Raises InvalidData if the file has another form, or if two questions or two options of a question are equal in that form.
    """
    try:
        pairs = _pairs(path, read_json(path))
    except Unreadable as error:
        raise InvalidData(file=str(path), problems=f"  {error.problem}") from error
    listed: dict[str, list[str]] = {}
    for question, options in pairs:
        text, labels = text_of(question), [text_of(option) for option in options]
        if text in listed or len(set(labels)) < len(labels):
            problem = (
                f"  {question!r}: it, or one of its options, is there twice (spaces and forms of letters do not count)"
            )
            raise InvalidData(file=str(path), problems=problem)
        listed[text] = labels
    return listed


def listed_questions(path: Path) -> tuple[Question, ...]:
    """Returns the questions of a JSON file that an import keeps: those with two options or more. All shares are equal."""
    several = {text: options for text, options in listed_options(path).items() if len(options) >= 2}
    return _checked(path, [Asked(question=text, options=tuple(options)) for text, options in several.items()])


def kept_apart(questions: Sequence[Question], waves: Sequence[str]) -> tuple[Question, ...]:
    """Returns each question once for each wave; the questions themselves if there are no waves."""
    named = [wave or "no wave" for wave in waves]
    return tuple(replace(one, text=f"{one.text} ({wave})") for one in questions for wave in named) or tuple(questions)


def _pairs(path: Path, listed: object) -> list[tuple[str, list[str]]]:
    if not isinstance(listed, dict):
        raise InvalidData(file=str(path), problems="  not an object; give question: list of its options")
    for question, options in listed.items():
        if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
            raise InvalidData(file=str(path), problems=f"  {question!r}: its options are no list of texts")
    return list(listed.items())


def _checked(path: Path, asked: Sequence[Asked]) -> tuple[Question, ...]:
    """Returns questions with equal shares. Raises InvalidData if a question has no text, or not at least two options."""
    questions = []
    for one in asked:
        labels = tuple(option.strip() for option in one.options)
        if not one.question.strip() or len(labels) < 2 or len(set(labels)) < len(labels) or not all(labels):
            raise InvalidData(
                file=str(path), problems=f"  {one.question!r}: give at least 2 different options, each with a text"
            )
        questions.append(Question(one.question.strip(), labels, (1 / len(labels),) * len(labels)))
    return tuple(questions)
