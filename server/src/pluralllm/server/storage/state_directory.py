"""The coordinator's directory on disk: its lock and its layout."""

from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import URL

from pluralllm.common.process.files import storage_errors
from pluralllm.common.process.lock import DirectoryLock


class StateDirectory:
    """The state directory. One process at a time may enter it: a second coordinator on the same state would lose updates."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.blobs = self.path / "blobs"
        self.uploads = self.path / "uploads"
        self.scratch = self.path / "scratch"
        self.authority = self.path / "authority"
        self._lock = DirectoryLock(self.path)

    @property
    def database_url(self) -> URL:
        """URL of the SQLite file. It is not built as text: "?" or "%" in the path would change where the file is created."""
        return URL.create("sqlite+aiosqlite", database=str(self.path / "coordinator.sqlite3"))

    def __enter__(self) -> Self:
        """Locks the directory and creates missing folders. Raises InUse with the process, InvalidConfig, StorageFull."""
        self._lock.__enter__()
        with storage_errors(f"the state directory {self.path}"):
            for folder in (self.blobs, self.uploads, self.scratch):
                folder.mkdir(mode=0o700, exist_ok=True)
        for leftover in self.scratch.iterdir():  # half-written models of a process that was killed
            leftover.unlink()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.__exit__(kind, error, trace)
