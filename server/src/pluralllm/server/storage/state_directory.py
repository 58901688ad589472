"""The coordinator's state directory: its lock, and the paths of its files."""

from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import URL

from pluralllm.common.process.files import make_folder, storage_errors
from pluralllm.common.process.lock import DirectoryLock


class StateDirectory:
    """The coordinator's state directory. Only one process may use the directory at a time.

    If two coordinators used one directory, updates would be lost.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.blobs = self.path / "blobs"
        self.uploads = self.path / "uploads"
        self.scratch = self.path / "scratch"
        self.authority = self.path / "authority"
        self._lock = DirectoryLock(self.path)

    @property
    def database_url(self) -> URL:
        """The URL of the SQLite file in the directory.

        The URL is made from its components, because "?" or "%" in a path has a meaning in the text of a URL.
        """
        return URL.create("sqlite+aiosqlite", database=str(self.path / "coordinator.sqlite3"))

    def __enter__(self) -> Self:
        """Locks the directory, creates missing folders and deletes the remains of a process that was killed.

        Raises InUse if another process holds the lock; the error names the process. Raises InvalidConfig if the directory
        cannot be used; StorageFull if no space is left.
        """
        self._lock.__enter__()
        with storage_errors(f"the state directory {self.path}"):
            for folder in (self.blobs, self.uploads, self.scratch):
                make_folder(folder)
        for leftover in self.scratch.iterdir():  # half-written models of a process that was killed
            leftover.unlink()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.__exit__(kind, error, trace)
