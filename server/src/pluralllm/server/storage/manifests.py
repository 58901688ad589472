"""Manifests (chunk lists) of model versions, computed from the stored bytes. Recently used manifests are cached."""

import asyncio

from pluralllm.common.errors.tree import Corrupt, NotFound
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.weights.chunks import Manifest, manifest_of
from pluralllm.common.words.ids import Digest, ModelVersion, RunId
from pluralllm.common.words.names import ModelName
from pluralllm.server.process.last_used import LastUsed
from pluralllm.server.storage.blobs import Blobs
from pluralllm.server.storage.store import Store

KEPT = 64  # chunk lists in the cache, and version records


class Manifests:
    """The manifests (chunk lists) and the records of all runs' model versions. Recently used ones are cached."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store, self._blobs = store, blobs
        self._kept = LastUsed[Digest, Manifest](KEPT)
        self._records = LastUsed[tuple[RunId, ModelVersion], VersionRecord](KEPT)

    async def record(self, run: RunId, version: ModelVersion) -> VersionRecord:
        """Returns the version record of a model version. Raises NotFound if the version does not exist.

        A record never changes, so recently used ones are cached.
        """
        if (record := self._records.get((run, version))) is not None:
            return record
        record = await self._store.version(run, version)
        if record is None:
            raise NotFound(what="model version", name=str(ModelName(run, version)))
        self.keep_record(record)
        return record

    async def of(self, run: RunId, version: ModelVersion) -> tuple[VersionRecord, Manifest]:
        """Returns the version record (its digest, its parent and its updates) and the manifest of a model version.

        Raises NotFound if the version or its file does not exist; Corrupt if the file's bytes do not have the recorded digest.
        """
        record = await self.record(run, version)
        if (manifest := self._kept.get(record.digest)) is None:
            manifest = await asyncio.to_thread(manifest_of, await self._blobs.path(record.digest))
            if manifest.digest != record.digest:
                raise Corrupt(what=f"model version {version} of run {run}", expected=record.digest, got=manifest.digest)
            self.keep(manifest)
        return record, manifest

    def keep(self, manifest: Manifest) -> None:
        """Caches the manifest of a version that clients will soon fetch, so that the version's file is not read again."""
        self._kept.put(manifest.digest, manifest)

    def keep_record(self, record: VersionRecord) -> None:
        """Caches the record of a version, which must be durable."""
        self._records.put((record.run, record.version), record)
