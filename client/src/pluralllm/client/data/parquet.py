"""Reads and writes tables of questions as Parquet files.

Other modules import this module only when a file is Parquet, because pyarrow loads slowly.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pluralllm.common.text.reading import MAX_DATA_BYTES, Unreadable, not_opened, read_bytes

SCHEMA = pa.schema(
    [
        ("question", pa.string()),
        ("options", pa.list_(pa.string())),
        ("shares", pa.list_(pa.float64())),
        ("counts", pa.list_(pa.float64())),
        ("scale", pa.list_(pa.float64())),
        ("weight", pa.float64()),
        ("respondents", pa.int64()),
        ("question_key", pa.string()),
    ]
)


def read_table(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a Parquet file. Raises Unreadable if it cannot be opened, or if it is no Parquet file."""
    return rows_of(path, read_bytes(path, MAX_DATA_BYTES))  # pyarrow would take a folder for a table in many files


def rows_of(path: Path, content: bytes) -> list[dict[str, Any]]:
    """Returns the rows in the bytes of a Parquet file. path: for errors. Raises Unreadable if they are no Parquet file."""
    try:
        table = pq.read_table(pa.BufferReader(content))
        rows: list[dict[str, Any]] = table.to_pylist()
        for name in (field.name for field in table.schema if pa.types.is_float32(field.type)):
            for row, value in zip(rows, table[name].to_numpy(), strict=True):
                row[name] = None if row[name] is None else float(str(value))  # 0.1 and not 0.10000000149
    except (pa.ArrowException, ValueError, ArithmeticError, LookupError, TypeError) as error:
        raise Unreadable(
            path, f"it is no Parquet file, or it is damaged: {str(error).partition(chr(10))[0]}"
        ) from error
    except OSError as error:
        problem = not_opened(path, error) if error.strerror else Unreadable(path, f"it is damaged: {error}")
        raise problem from error
    return rows


def question_table(rows: Sequence[dict[str, Any]]) -> bytes:
    """Returns the bytes of a Parquet file with these rows. Each row has the fields of a row in a private file."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content
