"""Deletes blobs that are no longer needed: updates of old rounds, unused optimizer moments, and blobs without a record.

Optimizer moments are the server optimizer's state. A blob has no record if no row of the database refers to it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection

from pluralllm.common.words.ids import Digest, ModelVersion, RunId
from pluralllm.server.storage.blobs import Blobs
from pluralllm.server.storage.store import RoundOutcome, Store


async def kept_blobs(store: Store, keep_updates: int, over: Collection[RunId] = ()) -> set[Digest]:
    """Returns the digests of all blobs that must be kept.

    The set has all model versions, and the updates and rollouts of each run's open round and newest `keep_updates` ended
    rounds. The set also has two kinds of optimizer moments (the server optimizer's state). The next round needs the newest
    version's moments. The command `verify` needs the moments with which the kept rounds began.
    over: runs that have ended, which need no moments for a next round.
    """
    keep: set[Digest] = set()
    for run in await store.runs():
        digests = await store.model_digests(run.id)
        keep.update(digests)
        if run.id not in over:
            keep.update(await _moments(store, run.id, ModelVersion(len(digests) - 1)))
        ended = 0
        for record in await store.rounds(run.id, None, keep_updates + 1):
            ended += record.outcome is not RoundOutcome.OPEN
            if ended <= keep_updates:
                if record.rollouts:
                    keep.add(Digest(record.rollouts))
                keep |= {row.receipt.digest for row in await store.receipts(run.id, record.round)}
                if record.outcome is RoundOutcome.CLOSED:
                    keep.update(await _moments(store, run.id, record.base_version))
    return keep


async def _moments(store: Store, run: RunId, number: ModelVersion) -> tuple[Digest, ...]:
    version = await store.version(run, number)
    return () if version is None else version.moments


async def collect(store: Store, blobs: Blobs, keep_updates: int, over: Collection[RunId] = ()) -> None:
    """Deletes every blob whose digest `kept_blobs` does not return. over: runs that have ended.

    The caller must make sure that no blob is stored meanwhile. No record refers to a new blob yet, so the function would delete
    the new blob.
    """
    keep = await kept_blobs(store, keep_updates, over)
    for digest in await blobs.digests():
        if digest not in keep:
            await blobs.delete(digest)


class Retention:
    """Deletes blobs only while no blob is being stored, so that a new blob is not deleted before a record refers to it."""

    def __init__(self, store: Store, blobs: Blobs, keep_updates: int) -> None:
        self._store, self._blobs, self._keep_updates = store, blobs, keep_updates
        self._changed = asyncio.Condition()
        self._storing = 0

    @contextlib.asynccontextmanager
    async def storing(self) -> AsyncIterator[None]:
        """Prevents the deletion of blobs during the block, in which the caller stores a blob and its record.

        The block should be short, because `collect` waits for the end of the block.
        """
        async with self._changed:
            self._storing += 1
        try:
            yield
        finally:
            self._storing -= 1
            async with self._changed:
                self._changed.notify_all()

    async def collect(self, over: Collection[RunId]) -> None:
        """Deletes blobs that are not needed, as soon as no `storing` block runs.

        New `storing` blocks wait for the end of the deletion.
        over: runs that have ended. Such a run no longer needs its newest optimizer moments (the server optimizer's state).
        """
        async with self._changed:
            await self._changed.wait_for(lambda: not self._storing)
            await collect(self._store, self._blobs, self._keep_updates, over)
