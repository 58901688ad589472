"""Reads what closed private rounds leave behind: the transcript of each, and its masked updates, while they are kept."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from pluralllm.common.errors.tree import NotFound, OverLimit
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.weights.chunks import CHUNK_BYTES
from pluralllm.common.words.ids import ClientId, Digest, RoundNumber, RunId
from pluralllm.common.words.names import RoundName
from pluralllm.server.storage.blobs import Blobs
from pluralllm.server.storage.store import Store


class RoundFiles:
    """The reader of transcripts and masked updates. With both, everybody can compute a round's sum again."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store, self._blobs = store, blobs

    async def transcript(self, run: RunId, number: RoundNumber, first: int) -> AsyncIterator[tuple[int, bytes]]:
        """Yields one pair for each chunk of a round's transcript: the chunk's number and its bytes.

        first: the number of the chunk to begin with. Raises NotFound if the round is not a closed private round, or if the file
        is no longer kept; OverLimit if the file has no chunk number `first`.
        """
        record = await self._record(run, number)
        async for chunk in self._chunks(Digest(record.transcript), str(RoundName(run, number)), first):
            yield chunk

    async def masked(
        self, run: RunId, number: RoundNumber, member: str, first: int
    ) -> AsyncIterator[tuple[int, bytes]]:
        """Yields the chunks of a member's masked update, as `transcript` does. Raises NotFound if the sum has no such update."""
        record = await self._record(run, number)
        digests = {client: digest for client, digest, _ in record.updates}
        name = f"{RoundName(run, number)} of {member}"
        if (digest := digests.get(ClientId(member))) is None:
            raise NotFound(what="masked update", name=name)
        async for chunk in self._chunks(digest, name, first):
            yield chunk

    async def _record(self, run: RunId, number: RoundNumber) -> VersionRecord:
        row = await self._store.round(run, number)
        version = None if row is None or row.version is None else await self._store.version(run, row.version)
        if version is None or not version.transcript:
            raise NotFound(what="closed private round", name=str(RoundName(run, number)))
        return version

    async def _chunks(self, digest: Digest, name: str, first: int) -> AsyncIterator[tuple[int, bytes]]:
        path = await self._blobs.path(digest)
        chunks = max(1, -(-path.stat().st_size // CHUNK_BYTES))
        if not 0 <= first < chunks:
            raise OverLimit(what=f"first_chunk of {name}", got=first, limit=chunks - 1)
        for index in range(first, chunks):
            yield index, await asyncio.to_thread(_read, path, index)


def _read(path: Path, index: int) -> bytes:
    with path.open("rb") as file:
        file.seek(index * CHUNK_BYTES)
        return file.read(CHUNK_BYTES)
