"""Reads model versions for clients: a version's manifest (chunk list), and its chunks as messages that clients share."""

from collections.abc import AsyncIterator

from pluralllm.common.errors.tree import OverLimit
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.weights.chunks import Manifest
from pluralllm.common.words.ids import ModelVersion, RunId
from pluralllm.server.storage.blobs import Blobs
from pluralllm.server.storage.manifests import Manifests
from pluralllm.server.storage.model_chunks import ModelChunks


class ModelReader:
    """The reader of model versions. The process has one reader, so that the clients of a round share its caches."""

    def __init__(self, manifests: Manifests, blobs: Blobs) -> None:
        self._manifests, self._blobs, self._chunks = manifests, blobs, ModelChunks()

    async def manifest(self, run: RunId, version: ModelVersion) -> tuple[VersionRecord, Manifest]:
        """Returns the version record (its digest, its parent and its updates) and the manifest of a model version.

        Raises NotFound if the version or its file does not exist; Corrupt if the file's bytes do not have the recorded digest.
        """
        return await self._manifests.of(run, version)

    async def record(self, run: RunId, version: ModelVersion) -> VersionRecord:
        """Returns the version record of a model version. Raises NotFound if the version does not exist."""
        return await self._manifests.record(run, version)

    async def chunks(self, run: RunId, version: ModelVersion, first: int) -> AsyncIterator[tuple[bytes, int]]:
        """Yields one pair for each chunk of a version: the message with the chunk, and the chunk's size in bytes.

        first: the number of the chunk to begin with.

        Raises NotFound if the version or its file does not exist; Corrupt if the file's bytes do not have the recorded digest;
        OverLimit if the version has no chunk number `first`.
        """
        record, manifest = await self._manifests.of(run, version)
        if not 0 <= first < manifest.chunks:
            raise OverLimit(what="first_chunk", got=first, limit=manifest.chunks - 1)
        path = await self._blobs.path(record.digest)
        for index in range(first, manifest.chunks):
            yield await self._chunks.message(path, manifest, index), manifest.chunk_size(index)
