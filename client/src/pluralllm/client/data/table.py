"""A table that was read: its rows, and what could not be read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pluralllm.common.errors.tree import InvalidData

MAX_PROBLEMS_SHOWN = 20


def plain_text(value: Any) -> str:
    """Returns the text of a value as every importer has it: empty for None, and true or false as JSON writes them."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows with named fields. Numbers of rows are those of lines; a format without lines has the numbers of rows."""

    rows: tuple[tuple[int, dict[str, Any]], ...]
    problems: tuple[tuple[int, str], ...] = ()  # of rows that cannot be read, each with its line
    notes: tuple[str, ...] = ()  # what the reader has guessed
    columns: tuple[str, ...] | None = None  # None: rows may differ in their fields
    labels: Mapping[str, Mapping[Any, str]] = field(default_factory=dict)  # of values, by column and value, in order
    titles: Mapping[str, str] = field(default_factory=dict)  # what a column is about


def bad_rows(path: Path, problems: Sequence[tuple[int, str]], *advice: str) -> InvalidData:
    """Returns the error for a file with problems, each with its line: the first of them, how many more there are, and advice."""
    lines = [f"line {line}: {text}" for line, text in problems[:MAX_PROBLEMS_SHOWN]]
    more = len(problems) - len(lines)
    lines += [f"and {more} more"] if more else []
    return InvalidData(file=str(path), problems="\n".join(f"  {line}" for line in [*lines, *advice]))
