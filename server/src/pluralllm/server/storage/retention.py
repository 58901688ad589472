"""Which blobs may go: updates of rounds long closed, server optimizers' moments that no one goes on from, what nothing names."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection

from pluralllm.common.words.ids import Digest, ModelVersion, RunId
from pluralllm.server.storage.blobs import Blobs
from pluralllm.server.storage.store import RoundOutcome, Store


async def kept_blobs(store: Store, keep_updates: int, over: Collection[RunId] = ()) -> set[Digest]:
    """Every version, the updates of open rounds and of the newest `keep_updates` ended ones of each run, and moments.

    The next round needs the newest version's moments, unless the run is `over`; `verify` needs those that a round began with
    whose updates are kept.
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
    """Deletes every other blob. Nobody may be storing one meanwhile: it would not be on record yet."""
    keep = await kept_blobs(store, keep_updates, over)
    for digest in await blobs.digests():
        if digest not in keep:
            await blobs.delete(digest)


class Retention:
    """Keeps "store a blob, then put it on record" and the deletion of blobs that nothing names apart."""

    def __init__(self, store: Store, blobs: Blobs, keep_updates: int) -> None:
        self._store, self._blobs, self._keep_updates = store, blobs, keep_updates
        self._changed = asyncio.Condition()
        self._storing = 0

    @contextlib.asynccontextmanager
    async def storing(self) -> AsyncIterator[None]:
        """Around "blob durable, then on record": no blob is collected in between. Short: a collection waits for it."""
        async with self._changed:
            self._storing += 1
        try:
            yield
        finally:
            self._storing -= 1
            async with self._changed:
                self._changed.notify_all()

    async def collect(self, over: Collection[RunId]) -> None:
        """As soon as nothing is being stored; who wants to store waits until it is done."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._storing)
            await collect(self._store, self._blobs, self._keep_updates, over)
