"""Reads the files of statistics programs: SPSS (.sav, .zsav) and Stata (.dta), with their value labels.

Other modules import this module only for such a file, because pyreadstat is an optional package.
"""

import math
from pathlib import Path
from typing import Any

from pluralllm.client.data.table import Table
from pluralllm.common.process.extras import need_surveys
from pluralllm.common.text.reading import MAX_DATA_BYTES, Unreadable, not_opened, opened


def statistics_table(path: Path, encoding: str | None = None) -> Table:
    """Returns the table in a file of SPSS or Stata. A value with a label is its label; a missing value is None.

    Raises Unreadable if the file cannot be read; ExtraMissing if pyreadstat is not installed.
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
        columns, facts = read(str(path), output_format="dict", encoding=encoding)
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
    labelled = facts.variable_value_labels
    texts = {name: [_labelled(value, labelled.get(name, {})) for value in values] for name, values in columns.items()}
    rows = (dict(zip(texts, row, strict=True)) for row in zip(*texts.values(), strict=True))
    return Table(tuple(enumerate(rows, 1)), columns=tuple(texts))


def _labelled(value: Any, labels: dict[Any, str]) -> Any:
    """Returns the label of a value, or the value itself; None for a missing one."""
    plain = value.item() if hasattr(value, "item") else value
    if plain is None or (isinstance(plain, float) and math.isnan(plain)):
        return None
    return labels.get(plain, plain)
