"""Reads tables: CSV, JSONL and Parquet files, whose rows have named fields."""

import csv
import io
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from pluralllm.common.errors.tree import InvalidData
from pluralllm.common.text.reading import MAX_DATA_BYTES, Unreadable, json_value, read_lines, read_text


def table_rows(path: Path, columns: Collection[str] = ()) -> Iterable[tuple[int, dict[str, Any]]]:
    """Reads a CSV, Parquet or JSONL file. Returns its rows, each with its line number or row number.

    columns: names of columns that a CSV file must have. Raises InvalidData if the file cannot be read or a column is missing.
    """
    if path.suffix == ".csv":
        return list(csv_rows(path, columns))
    try:
        if path.suffix == ".parquet":
            from pluralllm.client.data.parquet import read_table  # noqa: PLC0415 - pyarrow takes a moment

            return list(enumerate(read_table(path), 1))
        return [(line, _json_row(path, line, text)) for line, text in enumerate(read_lines(path), 1) if text.strip()]
    except Unreadable as error:
        raise InvalidData(file=str(path), problems=f"  {error.problem}") from error


def _json_row(path: Path, line: int, text: str) -> dict[str, Any]:
    """Returns the JSON object in a line of a file. Raises InvalidData, which names the line, if there is none."""
    try:
        row = json_value(text)
    except ValueError as error:
        raise InvalidData(file=str(path), problems=f"  line {line}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise InvalidData(file=str(path), problems=f"  line {line}: not a JSON object; one object a line")
    return row


def csv_rows(path: Path, columns: Collection[str]) -> Iterable[tuple[int, dict[str, str]]]:
    """Reads a CSV file. Returns its rows, each with its line number. Raises InvalidData if one of `columns` is missing."""
    try:
        reader = csv.DictReader(io.StringIO(read_text(path, MAX_DATA_BYTES), newline=""), restval="")
        absent = sorted(set(columns) - set(reader.fieldnames or ()))
        if absent:
            has = ", ".join(reader.fieldnames or ())
            raise InvalidData(file=str(path), problems=f"  no column {', '.join(absent)}; it has: {has}")
        return [(reader.line_num, _csv_row(path, reader.line_num, row)) for row in reader]
    except Unreadable as error:
        raise InvalidData(file=str(path), problems=f"  {error.problem}") from error
    except csv.Error as error:
        raise InvalidData(file=str(path), problems=f"  line {reader.line_num}: not CSV: {error}") from error


def _csv_row(path: Path, line: int, row: dict[str | Any, Any]) -> dict[str, str]:
    """Returns a row of a CSV file. Raises InvalidData, which names the line, if the row has too many fields."""
    if any(row.pop(None, ())):
        problem = f"  line {line}: it has more fields than the first line; put texts with commas into quotation marks"
        raise InvalidData(file=str(path), problems=problem)
    return row
