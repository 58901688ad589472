"""Immutable files named by their digest (blobs), such as model versions and updates.

The module has the protocol `Blobs` and the class `LocalBlobs`, a store on local files.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pluralllm.common.errors.tree import Corrupt, NotFound
from pluralllm.common.process.files import make_folder, publish, storage_errors, sync_directory
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.words.ids import Digest

SPARED_S = 3600.0  # files used in this time are not trimmed: a caller that asked for a path may not have opened it yet


class Blobs(Protocol):
    """A store of immutable files (blobs), each named by its digest. A change is durable when its method returns.

    A digest always names the same bytes, so every call may be repeated.
    """

    async def put(self, digest: Digest, source: Path) -> None:
        """Moves the finished local file `source` into the store.

        digest: the file's digest, which the caller has computed. Raises StorageFull if no space is left.
        """
        ...

    async def path(self, digest: Digest) -> Path:
        """Returns the path of a local file with the blob's bytes. Raises NotFound if the store has no such blob."""
        ...

    async def exists(self, digest: Digest) -> bool: ...

    async def delete(self, digest: Digest) -> None:
        """Deletes a blob. The method does nothing if the store has no blob with this digest."""
        ...

    async def digests(self) -> Sequence[Digest]:
        """Returns the digests of all blobs, sorted."""
        ...


class LocalBlobs:
    """A store of blobs as local files. The first byte of a blob's digest selects one of 256 folders."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, digest: Digest, source: Path) -> None:
        await asyncio.to_thread(self._put, digest, source)

    async def path(self, digest: Digest) -> Path:
        path = self._file(digest)
        if not path.is_file():
            raise NotFound(what="blob", name=digest)
        return path

    async def exists(self, digest: Digest) -> bool:
        return self._file(digest).is_file()

    async def delete(self, digest: Digest) -> None:
        await asyncio.to_thread(self._file(digest).unlink, missing_ok=True)

    async def digests(self) -> Sequence[Digest]:
        return await asyncio.to_thread(self._digests)

    async def trim(self, limit_bytes: int) -> None:
        """Deletes the least recently used blobs until the remaining blobs have at most `limit_bytes` bytes in all.

        Blobs that were used within the last SPARED_S seconds are never deleted.
        """
        await asyncio.to_thread(self._trim, limit_bytes)

    def _digests(self) -> list[Digest]:
        """Lists the folders without pathlib, whose glob takes several times as long. It is done at the end of each round."""
        if not self._folder.is_dir():
            return []
        folders = [entry.path for entry in os.scandir(self._folder) if len(entry.name) == 2 and entry.is_dir()]
        return sorted(Digest(entry.name) for folder in folders for entry in os.scandir(folder))

    def _trim(self, limit_bytes: int) -> None:
        files = [(path, path.stat()) for path in self._folder.glob("??/*")]
        total, spared_s = sum(status.st_size for _, status in files), time.time() - SPARED_S
        for path, status in sorted(files, key=lambda file: file[1].st_mtime):
            if total <= limit_bytes or status.st_mtime > spared_s:
                return
            path.unlink(missing_ok=True)
            total -= status.st_size

    def _file(self, digest: Digest) -> Path:
        return self._folder / digest[:2] / digest

    def _put(self, digest: Digest, source: Path) -> None:
        target = self._file(digest)
        with storage_errors(f"blob {digest[:12]}"):
            if not target.parent.is_dir():
                make_folder(target.parent)
                sync_directory(self._folder)
            publish(source, target)


def verify(path: Path, digest: Digest) -> None:
    """Checks that the bytes of the file at `path` have the given digest. Raises Corrupt if the bytes have another digest."""
    actual = manifest_of(path).digest
    if actual != digest:
        raise Corrupt(what=f"blob {path.name[:12]}", expected=digest, got=actual)
