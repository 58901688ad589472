"""The coordinator's directory on disk: who may use it, and what lies where."""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from pluralllm.common.errors import InUse, InvalidConfig
from pluralllm.common.files import storage_errors


class StateDirectory:
    """Entered by one process at a time (flock): a second coordinator on the same state would lose updates."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.blobs = self.path / "blobs"
        self.uploads = self.path / "uploads"
        self.scratch = self.path / "scratch"
        self._lock: IO[str] | None = None

    @property
    def database_url(self) -> str:
        return f"sqlite+aiosqlite:///{self.path / 'coordinator.sqlite3'}"

    def __enter__(self) -> Self:
        """Makes what is missing, owner-only. Raises InUse naming the process, InvalidConfig, StorageFull."""
        try:
            with storage_errors(f"the state directory {self.path}"):
                for folder in (self.path, self.blobs, self.uploads, self.scratch):
                    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._lock = (self.path / "lock").open("a+")
        except OSError as error:
            raise InvalidConfig(file="state_dir", problems=f"  {self.path} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise InUse(what=f"State directory {self.path}", by=f"process {holder}") from error
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        for leftover in self.scratch.iterdir():  # half-written models of a process that was killed
            leftover.unlink()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()
