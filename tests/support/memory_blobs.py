"""A blob store in one folder, for simulations: fast on a folder in memory, and it can fail as a disk fails.

It follows the rule of the real store (common/process/files.py): fsync, rename, fsync of the folder; a deletion is not synced.
So after a power loss a blob that was put is there, and a deleted blob may be there again. A blob whose fsync failed has lost
its bytes for good, although a second fsync of the same file would report success (fsync(2), notes on
error reporting).
"""

import errno
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from support.memory_store import Hook, nothing

from pluralllm.common.errors.tree import NotFound
from pluralllm.common.words.ids import Digest


class Written(NamedTuple):
    """Identifies the content of a file by its inode and the time of its last change."""

    inode: int
    changed_ns: int


class MemoryBlobs:
    """The contract of blobs.Blobs. The bytes are files, because averaging reads files; the list of blobs is kept in memory."""

    def __init__(self, folder: Path, before: Hook = nothing, after: Hook = nothing) -> None:
        self._folder, self._before, self._after = folder, before, after
        self._known = {Digest(path.name) for path in folder.iterdir() if path.suffix != ".deleted"}
        self._deleted: set[Digest] = set()  # since the last fsync of the folder
        self._lost: set[Written] = set()  # content that never reached the disk, although a later fsync succeeds
        self._undurable: set[Digest] = set()

    async def put(self, digest: Digest, source: Path) -> None:
        try:
            await self._before("blobs.put", source)
        except OSError as error:
            if error.errno == errno.EIO:
                self._lost.add(_written(source))
                source.unlink()  # noqa: ASYNC240 -- as common/process/files.py does
            raise
        if _written(source) in self._lost:
            self._undurable.add(digest)
        else:
            self._undurable.discard(digest)
        source.rename(self._file(digest))  # noqa: ASYNC240 -- simulations have no threads
        self._known.add(digest)
        await self._after("blobs.put", digest)
        self._sync_folder()

    async def path(self, digest: Digest) -> Path:
        await self._before("blobs.path", digest)
        if digest not in self._known:
            raise NotFound(what="blob", name=digest)
        return self._file(digest)

    async def exists(self, digest: Digest) -> bool:
        await self._before("blobs.exists", digest)
        return digest in self._known

    async def delete(self, digest: Digest) -> None:
        await self._before("blobs.delete", digest)
        if digest in self._known:
            self._file(digest).rename(self._grave(digest))
            self._known.remove(digest)
            self._deleted.add(digest)
        await self._after("blobs.delete", digest)

    async def digests(self) -> Sequence[Digest]:
        await self._before("blobs.digests", None)
        return sorted(self._known)

    # Faults of a disk

    def lose_power(self, back: Collection[Digest] = ()) -> None:
        """Removes the content that was not durable; restores the deleted blobs in `back`, whose deletion was not synced."""
        for digest in self._undurable & self._known:
            path = self._file(digest)
            path.write_bytes(bytes(path.stat().st_size))
        for digest in self._deleted & set(back) - self._known:
            self._grave(digest).rename(self._file(digest))
            self._known.add(digest)
        self._lost.clear()
        self._sync_folder()

    @property
    def deleted(self) -> Sequence[Digest]:
        """The blobs whose deletion is not durable yet, sorted."""
        return sorted(self._deleted)

    def flip_bit(self, digest: Digest, bit: int) -> None:
        """Flips a bit of the blob's bytes; a second flip of the same bit undoes the first."""
        flip_bit(self._file(digest), bit)

    def _sync_folder(self) -> None:
        for digest in self._deleted:
            self._grave(digest).unlink(missing_ok=True)
        self._deleted.clear()

    def _file(self, digest: Digest) -> Path:
        return self._folder / digest

    def _grave(self, digest: Digest) -> Path:
        return self._folder / f"{digest}.deleted"


def flip_bit(path: Path, bit: int) -> None:
    """Flips a bit of a file; the number counts from the start of the file and wraps around at its end."""
    handle = os.open(path, os.O_RDWR)
    try:
        offset, shift = divmod(bit % (8 * os.fstat(handle).st_size), 8)
        byte = os.pread(handle, 1, offset)[0]
        os.pwrite(handle, bytes([byte ^ 1 << shift]), offset)
    finally:
        os.close(handle)


def _written(path: Path) -> Written:
    status = path.stat()
    return Written(status.st_ino, status.st_mtime_ns)
