"""One process for each state directory."""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from pluralllm.common.errors.tree import InUse, InvalidConfig
from pluralllm.common.process.files import storage_errors


class DirectoryLock:
    """Makes a folder, owner-only, and holds it (flock) until the block ends; the kernel lets go when a process is killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        """Raises InUse naming the process, InvalidConfig, StorageFull."""
        try:
            with storage_errors(f"the state directory {self._folder}"):
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._file = (self._folder / "lock").open("a+")
        except OSError as error:
            raise InvalidConfig(
                file="state_dir", problems=f"  {self._folder} cannot be used: {error.strerror}"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            raise InUse(what=f"State directory {self._folder}", by=f"process {holder}") from error
        with storage_errors(f"the state directory {self._folder}"):
            self._file.truncate(0)
            self._file.write(str(os.getpid()))
            self._file.flush()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
