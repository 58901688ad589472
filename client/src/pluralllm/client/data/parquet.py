"""Reads and writes tables of questions as Parquet. It is imported where a file is Parquet: pyarrow takes its time to load."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [
        ("question", pa.string()),
        ("options", pa.list_(pa.string())),
        ("shares", pa.list_(pa.float64())),
        ("scale", pa.list_(pa.float64())),
        ("weight", pa.float64()),
    ]
)


def read_table(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a file. Raises OSError, or ValueError for a file that is no Parquet."""
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def question_table(rows: Sequence[dict[str, Any]]) -> bytes:
    """Returns rows of questions as the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content
