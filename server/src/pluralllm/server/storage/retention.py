"""Deletes blobs that are no longer needed: updates of old rounds, unused optimizer moments, and blobs without a record.

Optimizer moments are the server optimizer's state. A blob has no record if no row of the database refers to it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection

from pluralllm.common.words.ids import Digest, RunId
from pluralllm.server.storage.blobs import Blobs
from pluralllm.server.storage.store import Store


async def kept_blobs(store: Store, keep_updates: int, over: Collection[RunId] = ()) -> set[Digest]:
    """Returns the digests of all blobs that must be kept.

    All model versions are kept. For each run, the updates and rollouts of the open round and of the newest N ended rounds are
    kept.
    The transcript of a private round is kept as long as the round's updates.
    Moments (the server optimizer's state) are kept for two purposes. The newest version's moments are the input of the next
    round. The command `verify` repeats the kept rounds, so it needs the moments with which these rounds began.
    keep_updates: the number N. over: the runs that have ended. These runs have no next round, so their newest moments are not
    kept.
    """
    keep: set[Digest] = set()
    for run in await store.named_blobs(keep_updates + 1):
        keep |= run.versions
        if run.run not in over:
            keep |= run.moments
        ended = 0
        for made in run.rounds:
            ended += not made.is_open
            if ended <= keep_updates:
                keep |= made.digests | made.moments
    return keep


async def collect(store: Store, blobs: Blobs, keep_updates: int, over: Collection[RunId] = ()) -> None:
    """Deletes every blob that is not needed. The function `kept_blobs` decides which blobs are needed.

    The caller must make sure that no blob is stored during the call. Otherwise the function would delete the new blob,
    because no record refers to it yet.
    keep_updates: for each run, the number of ended rounds whose updates are kept. over: the runs that have ended.
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
