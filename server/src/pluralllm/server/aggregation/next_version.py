"""From a round's updates to the files of the next version: for the coordinator the first time, for `verify` again."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pluralllm.common.errors.tree import Corrupt
from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.weights.chunks import Manifest
from pluralllm.common.words.ids import Digest
from pluralllm.common.words.spec import RunSpec
from pluralllm.server.aggregation.arithmetic import first_moments, server_optimizer, weighted_mean, weights_of
from pluralllm.server.aggregation.reward_files import write_aggregate
from pluralllm.server.aggregation.update_files import StoredWeights, average
from pluralllm.server.rounds.events import Receipt
from pluralllm.server.storage.blobs import Blobs
from pluralllm.server.storage.store import VersionRecord


@dataclass(frozen=True, slots=True)
class Draft:
    """A finished file that is not yet a blob."""

    path: Path
    manifest: Manifest


async def write_next(
    blobs: Blobs,
    spec: RunSpec,
    base: VersionRecord,
    receipts: Sequence[Receipt],
    weights: Sequence[float],
    draft: Path,
) -> tuple[Draft, ...]:
    """The version after `base`, at `draft`, then the server optimizer's moments beside it; of rewards, their aggregate.

    `receipts` sorted by client; `weights` of them as recorded. Raises NotFound, Corrupt, StorageFull; nothing is left then.
    """
    if spec.rewards is not None:
        rewards = [await _stored(blobs, receipt.digest) for receipt in receipts]
        settings = spec.rewards.aggregation
        return (Draft(draft, await asyncio.to_thread(write_aggregate, rewards, weights, settings, draft)),)
    aggregation = spec.aggregation
    first = first_moments(aggregation)
    wanted = len(first) if base.version else 0
    if len(base.moments) != wanted:
        what = f"the record of model version {base.digest}"
        raise Corrupt(what=what, expected=f"{wanted} moments", got=str(len(base.moments)))
    start, *kept = [await _stored(blobs, digest) for digest in (base.digest, *base.moments)]
    updates = [await _stored(blobs, receipt.digest) for receipt in receipts]
    outs = [draft, *(draft.with_name(f"{draft.name}.moment-{number}") for number in range(1, len(first) + 1))]
    manifests = await asyncio.to_thread(
        average,
        start,
        kept or first,
        updates,
        weights_of(receipts, aggregation, weights),
        layout_for(spec),
        weighted_mean,
        server_optimizer(aggregation),
        outs,
        spec.updates.encoding,
    )
    return tuple(Draft(out, manifest) for out, manifest in zip(outs, manifests, strict=True))


async def _stored(blobs: Blobs, digest: Digest) -> StoredWeights:
    return StoredWeights(await blobs.path(digest), digest)
