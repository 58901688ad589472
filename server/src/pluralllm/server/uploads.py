"""Updates that are still coming in: one preallocated file each, filled chunk by chunk in any order.

Which chunks are there is not written down anywhere: after a restart it is found by hashing what is in the file, so bytes
that a power loss took are missing again and never trusted.
"""

import asyncio
import hashlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pluralllm.common.errors import ChunksMissing, DigestMismatch, OverLimit
from pluralllm.common.files import storage_errors
from pluralllm.common.weights import CHUNK_BYTES, Manifest


@dataclass(slots=True)
class _Upload:
    manifest: Manifest
    path: Path
    missing: set[int]


class Uploads:
    """Keys are file names. Safe for several streams that fill one upload."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, _Upload] = {}

    async def begin(self, key: str, manifest: Manifest) -> frozenset[int]:
        """The chunks still missing. Another manifest under the same key starts afresh. Raises StorageFull."""
        known = self._open.get(key)
        if known is None or known.manifest != manifest or not known.path.exists():
            path = self._folder / f"{key}.part"
            missing = await asyncio.to_thread(_prepare, path, manifest)
            self._open[key] = known = _Upload(manifest, path, missing)
        return frozenset(known.missing)

    async def put(self, key: str, index: int, data: bytes) -> None:
        """Verifies one chunk and keeps it; one that is there already is passed over.

        Raises ChunksMissing if nothing was begun, OverLimit, DigestMismatch or StorageFull.
        """
        upload = self._of(key)
        if not 0 <= index < upload.manifest.chunks:
            raise OverLimit(what="chunk index", got=index, limit=upload.manifest.chunks - 1)
        if len(data) != upload.manifest.chunk_size(index):
            raise OverLimit(what=f"size of chunk {index}", got=len(data), limit=upload.manifest.chunk_size(index))
        if index not in upload.missing:
            return
        await asyncio.to_thread(_write, upload.path, index, data, upload.manifest.chunk_hashes[index])
        upload.missing.discard(index)

    async def missing(self, key: str) -> frozenset[int]:
        return frozenset(self._of(key).missing)

    async def finish(self, key: str) -> Path:
        """The whole file, every chunk verified. Raises ChunksMissing."""
        upload = self._of(key)
        if upload.missing:
            raise ChunksMissing(missing=len(upload.missing))
        return upload.path

    async def drop(self, key: str) -> None:
        """Forgets an upload and its file, if there is one."""
        self._open.pop(key, None)
        await asyncio.to_thread((self._folder / f"{key}.part").unlink, missing_ok=True)

    async def sweep(self, keep: Collection[str]) -> None:
        """Drops every upload but these."""
        names = {path.name.removesuffix(".part") for path in self._folder.glob("*.part")}
        for key in (names | self._open.keys()) - set(keep):
            await self.drop(key)

    def _of(self, key: str) -> _Upload:
        if (upload := self._open.get(key)) is None:
            raise ChunksMissing(missing=1)
        return upload


def _prepare(path: Path, manifest: Manifest) -> set[int]:
    """Makes the file as long as the blob and finds the chunks that are not in it."""
    with storage_errors("an update"):
        fresh = not path.exists() or path.stat().st_size != manifest.size_bytes
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(handle, manifest.size_bytes)
            if hasattr(os, "posix_fallocate"):  # a full disk shows now, not in the middle
                os.posix_fallocate(handle, 0, manifest.size_bytes)
            if fresh:
                return set(range(manifest.chunks))
            found = set()
            for index, expected in enumerate(manifest.chunk_hashes):
                data = os.pread(handle, manifest.chunk_size(index), index * CHUNK_BYTES)
                if hashlib.sha256(data).digest() != expected:
                    found.add(index)
            return found
        finally:
            os.close(handle)


def _write(path: Path, index: int, data: bytes, expected: bytes) -> None:
    got = hashlib.sha256(data)
    if got.digest() != expected:
        raise DigestMismatch(what=f"chunk {index}", expected=expected.hex(), got=got.hexdigest())
    with storage_errors("an update"):
        handle = os.open(path, os.O_WRONLY)
        try:
            os.pwrite(handle, data, index * CHUNK_BYTES)
        finally:
            os.close(handle)
