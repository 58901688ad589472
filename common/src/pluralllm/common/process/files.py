"""Durable file operations: when one of these functions has returned, its effect survives a power loss."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from pluralllm.common.errors.tree import StorageFull


def sync_directory(folder: Path) -> None:
    """Makes the file names in a directory durable (fsync)."""
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
    """Makes the content that a file has so far durable (fdatasync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        getattr(os, "fdatasync", os.fsync)(handle)  # macOS has no fdatasync
    finally:
        os.close(handle)


def publish(source: Path, target: Path) -> None:
    """Moves a finished file to its final name: fsync, rename, fsync of the directory.

    A file whose fsync fails is removed, and the error passes: a second fsync could succeed although bytes are lost.
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
    """Writes a small file so that after a power loss it is either complete or unchanged. Raises StorageFull.

    The file has its mode from the beginning, so other users can never read a secret (mode 0o600).
    """
    with storage_errors(target.name):
        draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
        publish(draft, target)


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turns the OSError of a full disk or an exceeded quota into StorageFull. what: the thing that was being written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(what=what) from error
        raise
