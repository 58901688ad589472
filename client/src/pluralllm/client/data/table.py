"""A table that was read: its rows, and what could not be read."""

from dataclasses import dataclass
from typing import Any

MAX_PROBLEMS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Table:
    """Rows with named fields. Numbers of rows are those of lines; a format without lines has the numbers of rows."""

    rows: tuple[tuple[int, dict[str, Any]], ...]
    problems: tuple[tuple[int, str], ...] = ()  # of rows that cannot be read, each with its line
    notes: tuple[str, ...] = ()  # what the reader has guessed
    columns: tuple[str, ...] | None = None  # None: rows may differ in their fields
