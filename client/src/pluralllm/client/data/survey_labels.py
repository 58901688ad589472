"""The labels of a survey: what each code of an answer means, and what each column of a wide file asks."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pluralllm.client.data.survey_texts import text_of
from pluralllm.client.data.table import Table
from pluralllm.common.errors.tree import InvalidData
from pluralllm.common.text.reading import Unreadable, read_json

FORM = (
    '  give {"CODE": "LABEL", ...} for all questions, or {"QUESTION": {"CODE": "LABEL", ...}, ...}, or {"COLUMN": {"question":'
    ' TEXT, "labels": {"CODE": "LABEL", ...}}, ...}'
)


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of codes, for all questions or for single ones. A question is named by its text, or by its column."""

    of_all: Mapping[str, str] = field(default_factory=dict)
    of_question: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # the key is a column or a text
    texts: Mapping[str, str] = field(default_factory=dict)  # text of the question in a column

    def of(self, question: str, column: str = "") -> Mapping[str, str]:
        """Returns the labels by code of one question; empty if none are known."""
        return self.of_question.get(column) or self.of_question.get(question) or self.of_all


def read_labels(path: Path) -> Labels:
    """Reads labels from a JSON file. Raises InvalidData, which shows the possible forms, if the file has another form."""
    try:
        listed = read_json(path)
    except Unreadable as error:
        raise InvalidData(file=str(path), problems=f"  {error.problem}") from error
    if not isinstance(listed, dict) or not listed:
        raise InvalidData(file=str(path), problems=FORM)
    if all(isinstance(label, str) for label in listed.values()):
        return Labels(of_all=_labels(path, listed))
    of_question, texts = {}, {}
    for key, entry in listed.items():
        if not isinstance(entry, dict):
            raise InvalidData(file=str(path), problems=f"  {key!r}: its labels are no object\n{FORM}")
        if isinstance(entry.get("labels"), dict) or "question" in entry:
            texts[key] = text_of(entry.get("question")) or text_of(key)
            of_question[key] = _labels(path, entry.get("labels") or {})
        else:
            of_question[key] = _labels(path, entry)
    return Labels(of_question=of_question, texts=texts)


def _labels(path: Path, listed: Any) -> dict[str, str]:
    if not isinstance(listed, dict) or not all(isinstance(label, str) and label.strip() for label in listed.values()):
        raise InvalidData(file=str(path), problems=FORM)
    return {text_of(code): text_of(label) for code, label in listed.items()}


@dataclass(frozen=True, slots=True)
class FileLabels:
    """The labels that a file of SPSS or Stata has for its codes. Empty for any other file."""

    of_column: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by column and text of the code, in order
    whole: frozenset[str] = frozenset()  # columns in which every answer has a label, so that the labels are all options


def file_labels(table: Table, columns: Collection[str], missing: Collection[str]) -> FileLabels:
    """Returns the labels of those columns that hold answers.

    missing: codes and labels of missing answers in lower case; they need no label. All rows count, those of other groups, too:
    groups that are imported from one file get the same options.
    """
    of_column = {name: _by_text(table.labels[name]) for name in columns if table.labels.get(name)}
    answers = {name: {text_of(row.get(name)) for _, row in table.rows} - {""} for name in of_column}
    whole = {
        name
        for name, labels in of_column.items()
        if all(code in labels or code.casefold() in missing for code in answers[name])
    }
    return FileLabels(of_column, frozenset(whole))


def _by_text(labels: Mapping[Any, str]) -> dict[str, str]:
    """Returns labels by the texts of their codes, in the order of the codes."""
    codes = sorted(labels, key=lambda code: (isinstance(code, str), code))
    return {text_of(code): text_of(labels[code]) for code in codes if text_of(labels[code])}
