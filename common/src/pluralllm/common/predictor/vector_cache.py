"""A file that keeps vectors of texts, up to a number of bytes. The vectors that were not used for longest go first."""

import contextlib
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from pluralllm.common.process.files import create_file, make_folder

log = structlog.get_logger()

FILE = "embeddings.sqlite3"
TABLE = "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL)"
# The file cannot take more; the vectors are made again by the next process that needs them.
NO_PLACE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
MAX_BYTES = 1 << 30  # about 600,000 vectors of 384 numbers


class VectorCache:
    """An SQLite file. Several processes may use it at once; of one object, one thread at a time.

    SQLite numbers the rows as they are written. So the order of these numbers is the order of use, if a row that is used is
    written again. A row is written again only if it is among the older half and the cache is half full.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        """Opens the file in this folder, or creates both. max_bytes: the limit for rows and index together.

        If the disk is full, the vectors are kept in memory, for this object only.
        """
        self._folder, self._max_bytes = folder, max_bytes
        self._has_reported = False
        self._file = self._opened()
        try:
            self._file.execute(TABLE)
        except sqlite3.DatabaseError as error:
            if _code(error) not in NO_PLACE:
                self._begin_anew(error)
                return
            self._report_no_place(error)
            self.close()
            self._file = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            self._file.execute(TABLE)

    def close(self) -> None:
        self._file.close()

    def look_up(self, keys: Iterable[bytes]) -> dict[bytes, NDArray[np.float32]]:
        """Returns the vector of each key that the cache has. If the file is damaged, a new and empty one takes its place."""
        keys = tuple(keys)
        try:
            return self._look_up(keys)
        except sqlite3.DatabaseError as error:
            self._begin_anew(error)
            return {}

    def _opened(self) -> sqlite3.Connection:
        make_folder(self._folder, 0o755)
        create_file(self._folder / FILE, 0o644)
        file = sqlite3.connect(self._folder / FILE, timeout=60, isolation_level=None, check_same_thread=False)
        file.execute("PRAGMA temp_store=MEMORY")  # the folder for temporary files may be full
        return file

    def _begin_anew(self, error: sqlite3.DatabaseError) -> None:
        """Makes a new file in the place of a damaged one. Raises the error if it does not say that the file is damaged.

        Another process that has the old file open goes on with it; nothing is lost but the time to make the vectors again.
        """
        if _code(error) not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise error
        self.close()
        log.warning("embeddings.damaged", file=str(self._folder / FILE), effect="the texts are embedded anew")
        for path in self._folder.glob(f"{FILE}*"):
            path.unlink()  # with its journal, which belongs to the damaged file
        self._file = self._opened()
        self._file.execute(TABLE)

    def _look_up(self, keys: Sequence[bytes]) -> dict[bytes, NDArray[np.float32]]:
        oldest, newest = self._ends()
        middle = (oldest + newest) // 2 if self.used_bytes() > self._max_bytes // 2 else -1
        rows, aging = {}, {}
        for key in keys:
            row = self._file.execute("SELECT rowid, vector FROM vectors WHERE key = ?", (key,)).fetchone()
            if row is not None:
                rows[key] = np.frombuffer(row[1], dtype="<f4")
                if row[0] < middle:
                    aging[key] = rows[key]
        if aging:
            with contextlib.suppress(sqlite3.OperationalError):  # a full disk is no reason not to read
                self._keep(aging)
        return rows

    def keep(self, vectors: Mapping[bytes, NDArray[np.float32]]) -> None:
        """Writes vectors by their keys, and removes the oldest rows if the file has more than its bytes.

        If the disk is full, the log says so and nothing is kept: a cache is no reason to stop.
        """
        try:
            self._keep(vectors)
        except sqlite3.DatabaseError as error:
            if _code(error) in NO_PLACE:
                self._report_no_place(error)
                return
            self._begin_anew(error)
            self._keep(vectors)

    def _keep(self, vectors: Mapping[bytes, NDArray[np.float32]]) -> None:
        rows = [(key, vector.astype("<f4").tobytes()) for key, vector in vectors.items()]
        self._file.execute("BEGIN IMMEDIATE")
        try:
            self._file.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
            while self.used_bytes() > self._max_bytes:
                oldest, newest = self._ends()
                if oldest == newest:
                    break
                tenth = oldest + (newest - oldest) // 10
                self._file.execute("DELETE FROM vectors WHERE rowid <= ?", (tenth,))
        except BaseException:
            if self._file.in_transaction:  # a full disk may have ended it
                self._file.execute("ROLLBACK")
            raise
        self._file.execute("COMMIT")

    def used_bytes(self) -> int:
        """Returns the size of the pages in use. Freed pages are used again, so the file stays about as large."""
        pages, free, size = (
            self._file.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def _ends(self) -> tuple[int, int]:
        """Returns the numbers of the oldest and the newest row; 0 and 0 if there is none."""
        oldest, newest = self._file.execute(
            "SELECT (SELECT MIN(rowid) FROM vectors), (SELECT MAX(rowid) FROM vectors)"
        ).fetchone()
        return oldest or 0, newest or 0

    def _report_no_place(self, error: sqlite3.DatabaseError) -> None:
        if not self._has_reported:
            file, effect = str(self._folder / FILE), "texts are embedded again when they are needed again"
            log.warning("embeddings.not_kept", file=file, problem=str(error), effect=effect)
        self._has_reported = True


def _code(error: sqlite3.DatabaseError) -> int:
    """Returns SQLite's primary result code of an error; 0 if the error has none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
