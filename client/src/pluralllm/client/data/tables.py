"""Reads tables, whose rows have named fields, from the formats in which surveys and data sets are kept.

A library reads each format; what its values mean is the same for all. An absent value is None or an empty text. Zero and false
are values, and 5.0 is 5. Dates, decimals and bytes become texts. The file's ending names the format; for other endings, the
content does.
"""

import gzip
import io
import math
import re
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from pluralllm.client.data.delimited import delimited_rows
from pluralllm.client.data.table import Table, bad_rows, plain_text
from pluralllm.common.errors.tree import InvalidData
from pluralllm.common.process.console import say
from pluralllm.common.text.decoding import decoded
from pluralllm.common.text.reading import LINE_END, MAX_DATA_BYTES, Unreadable, json_value, read_bytes

TABS = frozenset({".tsv", ".tab"})
DELIMITED, JSON = TABS | {".csv"}, frozenset({".json", ".jsonl", ".ndjson"})
PARQUET, STATISTICS = frozenset({".parquet", ".pq"}), frozenset({".sav", ".zsav", ".dta"})
STARTS = {b"PAR1": ".parquet", b"$FL2": ".sav", b"$FL3": ".zsav"}
WHOLE_BELOW = 2**53  # a float of this size has no neighbour that is a fraction
BOOKS = frozenset({".xls", ".xlsx", ".ods"})


def table_rows(
    path: Path, columns: Collection[str] = (), *, encoding: str | None = None, delimiter: str | None = None
) -> list[tuple[int, dict[str, Any]]]:
    """Reads a table. Returns its rows, each with its line number, or with its row number where a format has no lines.

    A value of an SPSS or Stata file that has a label is its label. The rest is as in `checked_table`.
    """
    table = checked_table(path, columns, encoding=encoding, delimiter=delimiter)
    return [(line, labelled(row, table.labels)) for line, row in table.rows] if table.labels else list(table.rows)


def labelled(row: Mapping[str, Any], labels: Mapping[str, Mapping[Any, str]]) -> dict[str, Any]:
    """Returns a row with labels in place of the values that have one. labels: by column and value."""
    return {name: labels[name].get(value, value) if labels.get(name) else value for name, value in row.items()}


def checked_table(
    path: Path, columns: Collection[str] = (), *, encoding: str | None = None, delimiter: str | None = None
) -> Table:
    """Reads a table in which every row can be read.

    columns: names of columns that must be there.
    encoding, delimiter: of a text file; None: found, and a guess is printed on stderr.
    Raises InvalidData if the file cannot be read, if a column is missing, or if rows cannot be read: it lists the first of them.
    """
    table = read_table(path, columns, encoding=encoding, delimiter=delimiter)
    for note in table.notes:
        say(f"{path}: {note}", err=True)
    if table.problems:
        raise bad_rows(path, table.problems)
    return table


def read_table(
    path: Path, columns: Collection[str] = (), *, encoding: str | None = None, delimiter: str | None = None
) -> Table:
    """Reads a table, with the problems of its bad rows beside the good ones, as `table_rows` does.

    Raises InvalidData if the file as a whole cannot be read, or if a column is missing.
    """
    try:
        table = _read(path, columns, encoding, delimiter)
    except Unreadable as error:
        raise InvalidData(file=str(path), problems=f"  {error.problem}") from error
    present = list(table.columns or dict.fromkeys(name for _, row in table.rows for name in row))
    absent = sorted(set(columns).difference(present))
    if absent and (table.columns is not None or table.rows):
        has = ", ".join(present) or "no column"
        raise InvalidData(file=str(path), problems=f"  no column {', '.join(absent)}; it has: {has}")
    rows = tuple((line, {name: _value(value) for name, value in row.items()}) for line, row in table.rows)
    labels = {name: {_value(code): label for code, label in own.items()} for name, own in table.labels.items()}
    return replace(table, rows=rows, labels=labels)


def _read(path: Path, columns: Collection[str], encoding: str | None, delimiter: str | None) -> Table:
    """Returns the table in a file, with the values as the format's library gives them."""
    kind = path.suffix.lower()
    if kind in BOOKS:
        raise Unreadable(path, "it is a workbook of a spreadsheet program; save the sheet as CSV UTF-8")
    if kind in STATISTICS:
        from pluralllm.client.data.statistics_files import statistics_table  # noqa: PLC0415 - an extra package

        return statistics_table(path, encoding)
    content = read_bytes(path, MAX_DATA_BYTES)
    if kind == ".gz":
        kind, content = Path(path.stem).suffix.lower(), _unpacked(path, content)
    kind = next((found for start, found in STARTS.items() if content.startswith(start)), kind)
    if kind in STATISTICS:
        raise Unreadable(path, f"it is a file of SPSS; let its name end in {kind}")
    if kind in PARQUET:
        from pluralllm.client.data.parquet import rows_of  # noqa: PLC0415 - pyarrow takes a moment

        rows = rows_of(path, content)
        return Table(tuple(enumerate(rows, 1)), columns=tuple(rows[0]) if rows else None)
    text, notes = decoded(path, content, encoding)
    if kind in DELIMITED or (kind not in JSON and text.lstrip()[:1] not in ("{", "[", "")):
        return delimited_rows(path, text, columns, "tab" if kind in TABS and delimiter is None else delimiter, notes)
    return Table(*_json_rows(path, text, columns), notes)


def _unpacked(path: Path, content: bytes) -> bytes:
    """Returns the content of a gzip file. Raises Unreadable if it is damaged, or larger than MAX_DATA_BYTES."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            unpacked = file.read(min(MAX_DATA_BYTES, 1100 * len(content)) + 1)  # gzip packs at most 1032 to 1
    except (OSError, EOFError, zlib.error) as error:
        raise Unreadable(path, f"it is no gzip file, or it is damaged: {error}") from error
    if len(unpacked) > MAX_DATA_BYTES:
        raise Unreadable(path, f"its content is too large: more than {MAX_DATA_BYTES} bytes")
    return unpacked


Rows = tuple[tuple[int, dict[str, Any]], ...]
Problems = tuple[tuple[int, str], ...]


def _json_rows(path: Path, text: str, columns: Collection[str]) -> tuple[Rows, Problems]:
    """Returns the rows of JSON lines, of a JSON array, or of an object of rows, and the problems of the others."""
    if path.suffixes[-1:] == [".json"] or path.suffixes[-2:] == [".json", ".gz"] or _is_whole(text):
        try:
            return _members(path, json_value(text), columns)
        except ValueError as error:
            if isinstance(error, Unreadable) or not _has_objects(text):
                raise error if isinstance(error, Unreadable) else Unreadable(path, _not_json(error)) from error
    rows: list[tuple[int, dict[str, Any]]] = []
    problems: list[tuple[int, str]] = []
    for number, line in enumerate(LINE_END.split(text), 1):
        if not line.strip():
            continue
        try:
            value = json_value(line)
        except ValueError as error:
            problems.append((number, _not_json(error)))
            continue
        if isinstance(value, dict):
            rows.append((number, value))
        else:
            problems.append((number, "not a JSON object; one object a line"))
    return tuple(rows), tuple(problems)


def _not_json(error: ValueError) -> str:
    return f"not JSON: {error}"


def _is_whole(text: str) -> bool:
    """Returns whether a text is one JSON array over several lines, or one whose first line is an array of objects."""
    return re.match(r"\s*\[\s*(\{|\])", text) is not None


def _has_objects(text: str) -> bool:
    """Returns whether the first line that is not empty is an object of its own, as in JSON lines."""
    first = LINE_END.split(text.lstrip(), maxsplit=1)[0]
    try:
        return isinstance(json_value(first), dict)
    except ValueError:
        return False


def _members(path: Path, value: Any, columns: Collection[str]) -> tuple[Rows, Problems]:
    """Returns the rows in one JSON value: a list of objects, such a list under a name, or objects by name.

    An object of columns, each an object or a list of values, is read as well, if it has the names `columns`.
    """
    if isinstance(value, dict) and columns and set(columns) <= value.keys():
        value = _turned(path, value)
    if isinstance(value, dict):
        lists = [member for member in value.values() if isinstance(member, list)]
        if isinstance(value.get("data"), list):
            value = value["data"]
        elif len(lists) == 1 and all(isinstance(row, dict) for row in lists[0]):
            value = lists[0]
        elif value and all(isinstance(row, dict) for row in value.values()):
            value = list(value.values())
        else:
            value = [value]
    if not isinstance(value, list):
        raise Unreadable(path, "not a list of JSON objects; give one object for each row")
    rows = tuple((number, row) for number, row in enumerate(value, 1) if isinstance(row, dict))
    problems = (
        (n, "not a JSON object; the list has one for each row")
        for n, row in enumerate(value, 1)
        if not isinstance(row, dict)
    )
    return rows, tuple(problems)


def _turned(path: Path, value: dict[str, Any]) -> Any:
    """Returns the rows of an object of columns; the value itself if it is a row."""
    if all(isinstance(column, dict) for column in value.values()):
        keys = list(dict.fromkeys(key for column in value.values() for key in column))
        return [{name: column.get(key) for name, column in value.items()} for key in keys]
    if all(isinstance(column, list) for column in value.values()):
        if len({len(column) for column in value.values()}) > 1:
            raise Unreadable(path, "its columns differ in length; give each one value for each row")
        return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    return value


def _value(value: Any) -> Any:
    """Returns a value as every format has it: None, a number, a truth value, a text, or a list or object of these."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        is_whole = value.is_integer() and abs(value) < WHOLE_BELOW
        return None if math.isnan(value) else int(value) if is_whole else value
    if isinstance(value, Mapping):
        return {str(name): _value(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_value(member) for member in value]
    if isinstance(value, Decimal):
        return None if value.is_nan() else format(value, "f")
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(value) if isinstance(value, timedelta) else value


def csv_rows(path: Path, columns: Collection[str]) -> Iterable[tuple[int, dict[str, str]]]:
    """Reads a table as texts. Returns its rows, each with its line number; an absent value is an empty text.

    columns: names that each row has. Raises InvalidData as `table_rows` does.
    """
    for line, row in table_rows(path, columns):
        yield (
            line,
            dict.fromkeys(columns, "") | {name: plain_text(value) for name, value in row.items()},
        )
