"""Measures the time of each call to a blob store, whatever kind of store it is."""

from collections.abc import Sequence
from pathlib import Path

from pluralllm.common.words.ids import Digest
from pluralllm.server.process.instruments import BLOB_SECONDS
from pluralllm.server.storage.blobs import Blobs


class TimedBlobs:
    """A blob store that passes each call on to the store `inner` and measures the call's time.

    The protocol blobs.Blobs describes the methods.
    """

    def __init__(self, inner: Blobs) -> None:
        self._inner = inner

    async def put(self, digest: Digest, source: Path) -> None:
        with BLOB_SECONDS.labels("put").time():
            await self._inner.put(digest, source)

    async def path(self, digest: Digest) -> Path:
        with BLOB_SECONDS.labels("path").time():
            return await self._inner.path(digest)

    async def exists(self, digest: Digest) -> bool:
        with BLOB_SECONDS.labels("exists").time():
            return await self._inner.exists(digest)

    async def delete(self, digest: Digest) -> None:
        with BLOB_SECONDS.labels("delete").time():
            await self._inner.delete(digest)

    async def digests(self) -> Sequence[Digest]:
        with BLOB_SECONDS.labels("digests").time():
            return await self._inner.digests()
