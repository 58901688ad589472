"""Reads model versions for clients: the chunk list of a version, and its chunks as messages that are made once for all."""

from collections.abc import AsyncIterator

from pluralllm.common.errors.tree import OverLimit
from pluralllm.common.weights.chunks import Manifest
from pluralllm.common.words.ids import ModelVersion, RunId
from pluralllm.server.storage.blobs import Blobs
from pluralllm.server.storage.manifests import Manifests
from pluralllm.server.storage.model_chunks import ModelChunks
from pluralllm.server.storage.store import VersionRecord


class ModelReader:
    """One for each process, so that the clients of a round share what is read."""

    def __init__(self, manifests: Manifests, blobs: Blobs) -> None:
        self._manifests, self._blobs, self._chunks = manifests, blobs, ModelChunks()

    async def manifest(self, run: RunId, version: ModelVersion) -> tuple[VersionRecord, Manifest]:
        """A version's row and chunk list. Raises NotFound, Corrupt."""
        return await self._manifests.of(run, version)

    async def chunks(self, run: RunId, version: ModelVersion, first: int) -> AsyncIterator[tuple[bytes, int]]:
        """The messages of a version's chunks from number `first` on, each with its chunk's size in bytes.

        Raises NotFound, Corrupt, OverLimit.
        """
        record, manifest = await self._manifests.of(run, version)
        if not 0 <= first < manifest.chunks:
            raise OverLimit(what="first_chunk", got=first, limit=manifest.chunks - 1)
        path = await self._blobs.path(record.digest)
        for index in range(first, manifest.chunks):
            yield await self._chunks.message(path, manifest, index), manifest.chunk_size(index)
