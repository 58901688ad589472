"""Locks that let only one process at a time use a state directory or a file."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from pluralllm.common.errors.tree import InUse, InvalidConfig
from pluralllm.common.process.files import create_file, hide_from_git, make_folder, owner_hint, storage_errors

OWN_FILES = frozenset({"lock", ".gitignore"})  # what DirectoryLock makes in its folder


@contextlib.contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Locks a file for this process until the block ends (flock). The file is not changed, and may be read by everybody.

    A file system without locks is accepted, and a file that cannot be opened. Raises InUse if another process holds the lock.
    """
    if not (path.is_file() and os.access(path, os.R_OK)):
        yield
        return
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InUse(what=str(path), by="another process") from error
        except OSError:
            pass  # a network file system, where a second writer is noticed when it writes
        yield


class DirectoryLock:
    """A context manager that locks a folder for this process until the block ends (flock).

    The manager creates the folder if necessary. Only the owner can read a new folder. If the process is
    killed, the kernel releases the lock.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        """Takes the lock. Raises InUse, which names the other process, if another process holds the lock.

        Raises InvalidConfig if the folder cannot be created or opened, StorageFull if the disk is full.
        """
        try:
            with storage_errors(f"the state directory {self._folder}"):
                make_folder(self._folder)
                hide_from_git(self._folder)
                create_file(self._folder / "lock", 0o644)
                self._file = (self._folder / "lock").open("a+")
        except OSError as error:
            occupied = isinstance(error, FileExistsError | NotADirectoryError)
            why = "there is a file, or a link to nothing, in its place" if occupied else error.strerror
            problem = f"  {self._folder} cannot be used: {why}. {owner_hint(self._folder)}"
            raise InvalidConfig(file="state_dir", problems=problem.rstrip()) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            raise InUse(what=f"State directory {self._folder}", by=f"process {holder}") from error
        except OSError as error:  # for example a network file system without locks
            self._file.close()
            problem = f"  {self._folder} cannot be locked: {error.strerror}. Put the state directory on a local disk."
            raise InvalidConfig(file="state_dir", problems=problem) from error
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
