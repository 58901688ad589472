"""Files of updates that are still arriving. Each file has its full size from the start; chunks fill it in any order.

No file records which chunks have arrived. After a restart, the coordinator hashes the chunks in each file again. Bytes that a
power failure destroyed therefore count as missing.
"""

import asyncio
import hashlib
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from pluralllm.common.errors.tree import ChunksMissing, DigestMismatch, OverLimit
from pluralllm.common.process.files import create_file, storage_errors, sync_data
from pluralllm.common.weights.chunks import CHUNK_BYTES, Manifest
from pluralllm.server.process.cancellation import unbroken

T = TypeVar("T")
FLUSH_BYTES = 16 * CHUNK_BYTES


class Uploads:
    """All uploads in progress. The key of an upload is the name of its file.

    Calls for the same upload run one after another. Calls for different uploads run at the same time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, _Upload] = {}

    async def begin(self, key: str, manifest: Manifest) -> frozenset[int]:
        """Begins an upload, or continues the upload if it was begun with an equal manifest.

        Returns the numbers of the missing chunks. Raises StorageFull if no space is left.
        """
        return await self._in_turn(key, lambda upload: upload.prepare(manifest))

    async def put(self, key: str, index: int, data: bytes | memoryview) -> None:
        """Verifies one chunk and writes it to the file. A chunk that has arrived before is ignored.

        index: the chunk's number. data: the chunk's bytes. Raises ChunksMissing if the upload was not begun; OverLimit if
        `index` or the chunk's size is wrong; DigestMismatch if the chunk's hash is wrong; StorageFull if no space is left.
        """
        upload = await self._in_turn(key, lambda upload: upload.write(index, data))
        if upload.unsynced_bytes >= FLUSH_BYTES and (upload.flushing is None or upload.flushing.done()):
            upload.flushing = asyncio.create_task(asyncio.to_thread(upload.flush))

    async def missing(self, key: str) -> frozenset[int]:
        """Returns the numbers of the chunks that have not arrived. Raises ChunksMissing if the upload was not begun."""
        if (upload := self._open.get(key)) is None:
            raise ChunksMissing(missing=1)
        async with upload.turn:  # without a thread: nothing is read
            return upload.still_missing()

    async def finish(self, key: str) -> Path:
        """Returns the path of the complete file. Every chunk in the file is verified.

        Raises ChunksMissing if the file is incomplete.
        """
        upload = self._open.get(key)
        if upload is not None and upload.flushing is not None:
            await asyncio.wait([upload.flushing])
            upload.flush_failed = upload.flush_failed or upload.flushing.exception() is not None
        return await self._in_turn(key, _Upload.finished)

    async def drop(self, key: str) -> None:
        """Deletes an upload and its file. The method does nothing if the upload does not exist."""
        await self._in_turn(key, _Upload.remove)

    async def sweep(self, keep: Collection[str]) -> None:
        """Deletes every upload whose key is not in `keep`."""
        names = {path.name.removesuffix(".part") for path in self._folder.glob("*.part")}
        for key in (names | self._open.keys()) - set(keep):
            await self.drop(key)

    @unbroken
    async def _in_turn(self, key: str, work: "Callable[[_Upload], T]") -> T:
        """Runs the function `work` on an upload in a thread and returns the function's result.

        For each upload, one function runs at a time.
        """
        upload = self._open.setdefault(key, _Upload(self._folder / f"{key}.part"))
        upload.users += 1
        try:
            async with upload.turn:
                return await asyncio.to_thread(work, upload)
        finally:
            upload.users -= 1
            if not upload.users and upload.manifest is None:
                del self._open[key]


class _Upload:
    """One upload and its file. The methods block the calling thread.

    The caller of a method must hold the lock `turn`; only `flush` needs no lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: Manifest | None = None  # None before an upload is begun
        self.missing: set[int] = set()
        self.turn = asyncio.Lock()
        self.users = 0  # callers that hold `turn` or wait for it
        self.unsynced_bytes = 0
        self.flushing: asyncio.Task[None] | None = None
        self.flush_failed = False

    def begun(self) -> Manifest:
        """Returns the manifest of the upload. Raises ChunksMissing if the upload was not begun."""
        if self.manifest is None:
            raise ChunksMissing(missing=1)
        return self.manifest

    def prepare(self, manifest: Manifest) -> frozenset[int]:
        if self.manifest != manifest or not self.path.exists():
            self.manifest = None
            self.missing = _prepare_file(self.path, manifest)
            self.manifest = manifest
        return frozenset(self.missing)

    def write(self, index: int, data: bytes | memoryview) -> "_Upload":
        manifest = self.begun()
        if not 0 <= index < manifest.chunks:
            raise OverLimit(what="chunk index", got=index, limit=manifest.chunks - 1)
        # The hash alone proves too little: the sender chose it, perhaps for bytes that leave a hole or overlap the next chunk.
        if len(data) != manifest.chunk_size(index):
            raise OverLimit(what=f"size of chunk {index}", got=len(data), limit=manifest.chunk_size(index))
        if index not in self.missing:
            return self
        hashed, expected = hashlib.sha256(data), manifest.chunk_hashes[index]
        if hashed.digest() != expected:
            raise DigestMismatch(what=f"chunk {index}", expected=expected.hex(), got=hashed.hexdigest())
        try:
            _write_at(self.path, index * CHUNK_BYTES, data)
        except FileNotFoundError:
            raise self._gone(manifest) from None
        self.missing.discard(index)
        self.unsynced_bytes += len(data)
        return self

    def flush(self) -> None:
        """Syncs the file to disk while more chunks arrive, so that the sync at the end takes less time.

        The caller need not hold the lock `turn`. The operating system reports a failed sync only once. So the method records a
        failure in `flush_failed`, and the method `finished` then discards the whole file.
        """
        self.unsynced_bytes = 0
        try:
            sync_data(self.path)
        except FileNotFoundError:
            pass  # dropped meanwhile
        except OSError:
            self.flush_failed = True

    def still_missing(self) -> frozenset[int]:
        self.begun()
        return frozenset(self.missing)

    def finished(self) -> Path:
        manifest = self.begun()
        if self.flush_failed:
            self.flush_failed = False
            self.remove()
            raise ChunksMissing(missing=manifest.chunks)
        if self.missing:
            raise ChunksMissing(missing=len(self.missing))
        if not self.path.exists():
            raise self._gone(manifest)
        return self.path

    def remove(self) -> None:
        self.manifest = None
        self.path.unlink(missing_ok=True)

    def _gone(self, manifest: Manifest) -> ChunksMissing:
        """Marks the upload as not begun, because its file no longer exists. Returns the error that the caller must raise.

        The file is missing if it was moved to the blob store but the receipt could not be written.
        """
        self.manifest = None
        return ChunksMissing(missing=manifest.chunks)


def _prepare_file(path: Path, manifest: Manifest) -> set[int]:
    """Creates the file with its full size if necessary, and returns the numbers of the chunks that are missing in the file.

    If the file exists already, the function verifies its chunks by their hashes. Raises StorageFull if no space is left.
    """
    with storage_errors("an update"):
        fresh = not path.exists() or path.stat().st_size != manifest.size_bytes
        create_file(path)
        handle = os.open(path, os.O_RDWR)
        try:
            os.ftruncate(handle, manifest.size_bytes)
            if hasattr(os, "posix_fallocate"):  # a full disk fails now, not in the middle of the upload
                os.posix_fallocate(handle, 0, manifest.size_bytes)
            if fresh:
                return set(range(manifest.chunks))
            missing = set()
            for index, expected in enumerate(manifest.chunk_hashes):
                data = os.pread(handle, manifest.chunk_size(index), index * CHUNK_BYTES)
                if hashlib.sha256(data).digest() != expected:
                    missing.add(index)
            return missing
        finally:
            os.close(handle)


def _write_at(path: Path, offset: int, data: bytes | memoryview) -> None:
    with storage_errors("an update"):
        handle = os.open(path, os.O_WRONLY)
        try:
            rest = memoryview(data)
            while rest:  # a write may be short, for example when the disk fills up
                done = os.pwrite(handle, rest, offset)
                rest, offset = rest[done:], offset + done
        finally:
            os.close(handle)
