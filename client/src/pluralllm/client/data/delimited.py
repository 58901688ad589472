"""Reads tables of texts between delimiters: CSV, TSV, and the dialects of spreadsheet programs."""

import csv
import io
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from pluralllm.client.data.table import Table
from pluralllm.common.text.reading import Unreadable

DELIMITERS = (",", ";", "\t", "|")
NAMES = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}
MAX_FIELD_CHARACTERS = 16 * 1024 * 1024
SAMPLED_ROWS = 20
STATED = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)  # the first line that Excel writes and reads


def delimited_rows(
    path: Path, text: str, columns: Collection[str], delimiter: str | None, notes: tuple[str, ...] = ()
) -> Table:
    """Returns the table in a text. A row with fewer fields than the first line has empty fields at its end.

    columns: names that a delimiter should find in the first line. delimiter: None to find it. Raises Unreadable if the first line
    has a name twice, or if the delimiter is not one character.
    """
    before, stated = 0, STATED.match(text)
    if stated:
        text, before, delimiter = text[stated.end() :], 1, delimiter or stated[1]
    delimiter = _delimiter(path, text, columns, delimiter)
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    records = _records(text, delimiter)
    line, header = next(records, (1, []))
    if isinstance(header, str):
        raise Unreadable(path, f"line {line + before}: {header}")
    names = [name.strip() for name in header]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise Unreadable(path, f"two columns have the name {', '.join(twice)}; give each column a name of its own")
    rows: list[tuple[int, dict[str, str]]] = []
    problems: list[tuple[int, str]] = []
    for line, fields in records:
        problem = fields if isinstance(fields, str) else _problem(fields, len(names), delimiter)
        if problem:
            problems.append((line + before, problem))
        else:
            padded = [*fields, *[""] * (len(names) - len(fields))]
            rows.append((line + before, {name: field for name, field in zip(names, padded, strict=False) if name}))
    return Table(tuple(rows), tuple(problems), notes, tuple(filter(None, names)))


def _records(text: str, delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """Yields the records that are not empty, each with the number of its first line. A text replaces a bad record."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, f"not CSV: {error}; write a quotation mark inside a quoted text twice"
            continue
        if fields:
            yield line, fields


def _problem(fields: list[str], columns: int, delimiter: str) -> str:
    """Returns what is wrong with the fields of a record; an empty text if nothing is."""
    if any(fields[columns:]):
        named = {",": "commas", ";": "semicolons", "\t": "tabs"}.get(delimiter, repr(delimiter))
        return f"it has more fields than the first line; put texts with {named} into quotation marks"
    if any("\0" in field for field in fields):
        return "it has a NUL character, so the file is damaged, or it is no text"
    return ""


def _delimiter(path: Path, text: str, columns: Collection[str], delimiter: str | None) -> str:
    """Returns the delimiter that is stated, or the one that finds the named columns; else the one that finds the most columns."""
    if delimiter is not None:
        delimiter = NAMES.get(delimiter.lower(), delimiter)
        if len(delimiter) != 1 or delimiter in '"\r\n':
            raise Unreadable(path, f"the delimiter {delimiter!r} is not one character; give , ; | or tab")
        return delimiter
    rankings = []
    for candidate in DELIMITERS:
        sample = [len(fields) for _, fields in _first(text, candidate) if not isinstance(fields, str)]
        header = next((fields for _, fields in _first(text, candidate)), [])
        names = set() if isinstance(header, str) else {name.strip() for name in header}
        fits = sample.count(sample[0]) if sample else 0
        rankings.append((bool(columns) and set(columns) <= names, len(names) > 1, fits, len(names), candidate))
    return max(rankings, key=lambda facts: facts[:4])[4]


def _first(text: str, delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    for (line, fields), _ in zip(_records(text[:65536], delimiter), range(SAMPLED_ROWS), strict=False):
        yield line, fields
