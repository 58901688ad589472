"""The rows of a cache of embedded texts, to compare two ways of making the vectors bit by bit."""

import sqlite3
from pathlib import Path


def rows(folder: Path) -> list[tuple[bytes, bytes]]:
    """Returns the keys with their values, sorted by key. folder: of the cache."""
    with sqlite3.connect(folder / "embeddings.sqlite3") as file:
        return sorted(file.execute("SELECT key, vector FROM vectors"))
