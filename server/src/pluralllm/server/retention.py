"""Which blobs may go: updates of rounds long closed, and what nothing names."""

from pluralllm.common.ids import Digest
from pluralllm.server.blobs import Blobs
from pluralllm.server.store import RoundOutcome, Store


async def kept_blobs(store: Store, keep_updates: int) -> set[Digest]:
    """Every version, and the updates of open rounds and of the newest `keep_updates` ended ones of each run."""
    keep: set[Digest] = set()
    for run in await store.runs():
        keep |= {version.digest for version in await store.versions(run.id)}
        ended = 0
        for record in await store.rounds(run.id, None, keep_updates + 1):
            ended += record.outcome is not RoundOutcome.OPEN
            if ended <= keep_updates:
                keep |= {row.receipt.digest for row in await store.receipts(run.id, record.round)}
    return keep


async def collect(store: Store, blobs: Blobs, keep_updates: int) -> None:
    """Deletes every other blob. Nobody may be storing one meanwhile: it would not be on record yet."""
    keep = await kept_blobs(store, keep_updates)
    for digest in await blobs.digests():
        if digest not in keep:
            await blobs.delete(digest)
