"""Reads the files of statistics programs: SPSS (.sav, .zsav) and Stata (.dta), with their value labels.

Other modules import this module only for such a file, because pyreadstat is an optional package.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pluralllm.client.data.table import Table
from pluralllm.common.process.extras import need_surveys
from pluralllm.common.text.reading import MAX_DATA_BYTES, Unreadable, not_opened, opened


def statistics_table(path: Path, encoding: str | None = None) -> Table:
    """Returns the table in a file of SPSS or Stata, with its codes, and the labels of codes and columns beside them.

    A value that the file declares as missing is None, and has no label. Raises Unreadable if the file cannot be read;
    ExtraMissing if pyreadstat is not installed.
    """
    need_surveys()
    import pyreadstat  # noqa: PLC0415

    try:
        with opened(path):
            size_bytes = path.stat().st_size
    except OSError as error:
        raise not_opened(path, error) from error
    if size_bytes > MAX_DATA_BYTES:
        raise Unreadable(path, f"it is too large: more than {MAX_DATA_BYTES} bytes")
    read = pyreadstat.read_dta if path.suffix.lower() == ".dta" else pyreadstat.read_sav
    try:
        columns, facts = read(str(path), output_format="dict", encoding=encoding, user_missing=True)
    except (
        pyreadstat.PyreadstatError,
        pyreadstat.ReadstatError,
        ValueError,
        LookupError,
        ArithmeticError,
        OSError,
        TypeError,
    ) as error:
        problem = str(error).partition("\n")[0]
        raise Unreadable(path, f"it is no file of SPSS or Stata, or it is damaged: {problem}") from error
    codes: dict[str, list[Any]] = {}
    labels: dict[str, dict[Any, str]] = {}
    for name, values in columns.items():
        ranges: Any = facts.missing_ranges.get(name, ())  # after reading each is an object with lo and hi
        is_missing = partial(_is_missing, ranges, facts.missing_user_values.get(name, ()))
        plain = [value.item() if hasattr(value, "item") else value for value in values]
        codes[name] = [None if is_missing(value) else value for value in plain]
        own = facts.variable_value_labels.get(name, {})
        labels[name] = {code: label for code, label in own.items() if not is_missing(code)}
    rows = (dict(zip(codes, row, strict=True)) for row in zip(*codes.values(), strict=True))
    titles = {name: title for name, title in facts.column_names_to_labels.items() if title}
    return Table(tuple(enumerate(rows, 1)), columns=tuple(codes), labels=labels, titles=titles)


def _is_missing(ranges: Sequence[Mapping[str, Any]], values: Sequence[Any], code: Any) -> bool:
    """Returns whether a code is absent, or is one that the file declares as missing: in SPSS by ranges, in Stata by name."""
    if code is None or code in values or (isinstance(code, float) and math.isnan(code)):
        return True
    return any(type(code) is type(one["lo"]) and one["lo"] <= code <= one["hi"] for one in ranges)
