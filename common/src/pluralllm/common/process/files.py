"""Durable file operations: the effect of a function survives a power loss after the function has returned."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pluralllm.common.errors.tree import InvalidConfig, StorageFull
from pluralllm.common.text.reading import Unreadable, read_json


def sync_directory(folder: Path) -> None:
    """Makes new, renamed and removed file names in a directory durable (fsync)."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Makes a file's content and metadata durable (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_data(path: Path) -> None:
    """Makes a file's present content durable, but not the file's times (fdatasync, which is faster than fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        getattr(os, "fdatasync", os.fsync)(handle)  # macOS has no fdatasync
    finally:
        os.close(handle)


def publish(source: Path, target: Path) -> None:
    """Moves a finished file to its final name so that the move survives a power loss: fsync, rename, fsync of the directory.

    If the fsync of the file fails, the file is removed and the OSError is raised. The file is removed because a second fsync
    could succeed although bytes are lost.
    """
    try:
        sync_file(source)
    except OSError:
        with contextlib.suppress(OSError):
            source.unlink()
        raise
    source.rename(target)
    sync_directory(target.parent)


def write_durably(target: Path, content: bytes, mode: int = 0o644) -> None:
    """Writes a small file. After a power loss, the file has either its old or its complete new content.

    The file has the access rights `mode` from the beginning, so other users can never read a secret (mode 0o600).
    Raises StorageFull if the disk is full.
    """
    with storage_errors(target.name):
        draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
        publish(draft, target)


def read_state(path: Path) -> Any:
    """Returns the value in a JSON file that this program has written. Raises InvalidConfig, which names the file, otherwise."""
    try:
        return read_json(path)
    except Unreadable as error:
        raise InvalidConfig(file=str(path), problems=f"  it is damaged: {error.problem}") from error


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turns an OSError of the `with` block into StorageFull if the disk is full or a quota is exceeded.

    Other errors are raised unchanged. what: a description of the data that the block writes, for the message.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(what=what) from error
        raise
