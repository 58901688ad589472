"""Immutable files by digest: model versions and updates. A contract of five methods, and local files."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pluralllm.common.errors.tree import Corrupt, NotFound
from pluralllm.common.process.files import publish, storage_errors, sync_directory
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.words.ids import Digest

SPARED_S = 3600.0  # whoever asked for a path may still be about to open it


class Blobs(Protocol):
    """Durable when a method returns. A digest always names the same bytes, so every method may be repeated."""

    async def put(self, digest: Digest, source: Path) -> None:
        """Takes over a finished local file whose digest the caller has computed. Raises StorageFull."""
        ...

    async def path(self, digest: Digest) -> Path:
        """A local file to read from. Raises NotFound."""
        ...

    async def exists(self, digest: Digest) -> bool: ...

    async def delete(self, digest: Digest) -> None:
        """Nothing happens if there is none."""
        ...

    async def digests(self) -> Sequence[Digest]:
        """All, sorted."""
        ...


class LocalBlobs:
    """Blobs as files, in 256 folders by the first byte of the digest."""

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
        return await asyncio.to_thread(lambda: sorted(Digest(path.name) for path in self._folder.glob("??/*")))

    async def trim(self, limit_bytes: int) -> None:
        """Deletes what was used least lately until the rest fits; nothing that was used a short time ago."""
        await asyncio.to_thread(self._trim, limit_bytes)

    def _trim(self, limit_bytes: int) -> None:
        files = [(path, path.stat()) for path in self._folder.glob("??/*")]
        total, spared_s = sum(found.st_size for _, found in files), time.time() - SPARED_S
        for path, found in sorted(files, key=lambda file: file[1].st_mtime):
            if total <= limit_bytes or found.st_mtime > spared_s:
                return
            path.unlink(missing_ok=True)
            total -= found.st_size

    def _file(self, digest: Digest) -> Path:
        return self._folder / digest[:2] / digest

    def _put(self, digest: Digest, source: Path) -> None:
        target = self._file(digest)
        with storage_errors(f"blob {digest[:12]}"):
            if not target.parent.is_dir():
                target.parent.mkdir(mode=0o700, exist_ok=True)
                sync_directory(self._folder)
            publish(source, target)


def verify(path: Path, digest: Digest) -> None:
    """Reads a blob and compares. Raises Corrupt."""
    got = manifest_of(path).digest
    if got != digest:
        raise Corrupt(what=f"blob {path.name[:12]}", expected=digest, got=got)
