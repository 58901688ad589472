"""Makes the files of the next model version from a round's updates.

The coordinator makes the files when the round ends. The command `verify` makes the files again and compares the bits.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pluralllm.common.errors.tree import BaseLost, Corrupt, NotFound, UpdateLost
from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.sums.solver_files import state_files, write_next_sum
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.weights.chunks import Manifest
from pluralllm.common.weights.server_optimizer import first_moments, server_optimizer
from pluralllm.common.weights.stored_weights import StoredWeights
from pluralllm.common.words.ids import Digest
from pluralllm.common.words.spec import RunSpec
from pluralllm.server.aggregation.aggregator import aggregator
from pluralllm.server.aggregation.reward_files import write_aggregate
from pluralllm.server.aggregation.update_files import average, distances_between
from pluralllm.server.rounds.events import Receipt
from pluralllm.server.rounds.weighting import weights_of
from pluralllm.server.storage.blobs import Blobs, verify


@dataclass(frozen=True, slots=True)
class Draft:
    """A finished file that is not yet in the blob store."""

    path: Path
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class NextVersion:
    """The files that a round has made: the next model version first, then the server optimizer's moments."""

    files: tuple[Draft, ...]
    # One weight for each update, if the rule of the run has chosen among them: 1 for a chosen one, else 0. Otherwise empty.
    chosen: tuple[float, ...] = ()
    transcript: Draft | None = None  # of a private round
    tail: tuple[int, ...] = ()  # of a private round's sum: 64 numbers


async def write_next(
    blobs: Blobs,
    spec: RunSpec,
    base: VersionRecord,
    receipts: Sequence[Receipt],
    weights: Sequence[float],
    scales: Sequence[float],
    draft: Path,
) -> NextVersion:
    """Writes the files that a round makes: the next model version, or the aggregate of the clients' rewards.

    The version is written to `draft`, and each moment of the server optimizer (its state) to a file beside `draft`.
    base: the model version that the round trains from. receipts: sorted by client. weights: the weights that the round has
    recorded, in the order of `receipts`; empty if the round has recorded no weights. scales: the factors that shorten updates,
    in the same order; empty if no update is shortened. In a run whose updates are terms of sums, the solver's state takes the
    place of the moments, and neither weights nor scales count. A rule that chooses among the updates chooses anew, whatever
    the weights are.
    Raises BaseLost or UpdateLost if a blob of the base version or of an update is missing or corrupt. Raises Corrupt or
    NotFound if reading failed once but all blobs are whole in a second check. Raises StorageFull if no space is left. Raises
    PluginMissing or PluginBroken if the run's aggregator is another package's and cannot be used. After an error no file is left.
    """
    bases = () if spec.rewards is not None else (base.digest, *base.moments)
    try:
        return await _write(blobs, spec, base, receipts, weights, scales, draft)
    except (Corrupt, NotFound):
        if (lost := await first_lost(blobs, bases)) is not None:
            raise BaseLost(*lost) from None
        if (lost := await first_lost(blobs, [receipt.digest for receipt in receipts])) is not None:
            raise UpdateLost(*lost) from None
        raise


async def first_lost(blobs: Blobs, digests: Iterable[Digest]) -> tuple[Digest, str] | None:
    """Returns the first of the blobs that is missing or corrupt, and a text about its problem; None if all blobs are whole."""
    for digest in digests:
        try:
            await asyncio.to_thread(verify, await blobs.path(digest), digest)
        except (Corrupt, NotFound) as error:
            return digest, str(error)
    return None


async def _write(
    blobs: Blobs,
    spec: RunSpec,
    base: VersionRecord,
    receipts: Sequence[Receipt],
    weights: Sequence[float],
    scales: Sequence[float],
    draft: Path,
) -> NextVersion:
    if spec.rewards is not None:
        rewards = [await stored(blobs, receipt.digest) for receipt in receipts]
        settings = spec.rewards.aggregation
        manifest = await asyncio.to_thread(write_aggregate, rewards, weights, settings, draft)
        return NextVersion((Draft(draft, manifest),))
    aggregation = spec.aggregation
    start, *kept = await stored_base(blobs, base, state_files(spec, base.version))
    updates = [await stored(blobs, receipt.digest) for receipt in receipts]
    outs = drafts_beside(draft, state_files(spec, base.version + 1))
    if spec.sums is not None:
        members = [(str(receipt.client), receipt.examples) for receipt in receipts]
        sums = partial(write_next_sum, spec, base.version, start, kept, members, updates, outs)
        manifests = await asyncio.to_thread(sums)
        return NextVersion(tuple(map(Draft, outs, manifests)))
    rule = await asyncio.to_thread(aggregator, aggregation)  # another package's may take long to import
    factors = np.array(weights_of(receipts, aggregation, weights), dtype=np.float64)
    chosen: tuple[float, ...] = ()
    if rule.choose is not None:
        distances = partial(distances_between, updates, layout_for(spec), spec.updates.encoding, scales)
        places = await asyncio.to_thread(rule.choose, await asyncio.to_thread(distances))
        chosen = tuple(float(place in places) for place in range(len(updates)))
        updates, factors = [updates[place] for place in places], np.ones(len(places))
        scales = [scales[place] for place in places] if scales else ()
    manifests = await asyncio.to_thread(
        average,
        start,
        kept or first_moments(aggregation),
        updates,
        factors,
        layout_for(spec),
        server_optimizer(aggregation),
        outs,
        spec.updates.encoding,
        scales,
        rule.combine,
    )
    return NextVersion(tuple(map(Draft, outs, manifests)), chosen)


async def stored(blobs: Blobs, digest: Digest) -> StoredWeights:
    return StoredWeights(await blobs.path(digest), digest)


async def stored_base(blobs: Blobs, base: VersionRecord, moments: int) -> list[StoredWeights]:
    """Returns the files of a base version and its moments. Raises BaseLost unless its record has this number of moments."""
    if len(base.moments) != moments:
        raise BaseLost(digest=base.digest, problem=f"its record has {len(base.moments)} moments, expected {moments}.")
    return [await stored(blobs, digest) for digest in (base.digest, *base.moments)]


def drafts_beside(draft: Path, moments: int) -> list[Path]:
    """Returns the paths of the files that a round makes: the draft of the version, then one beside it for each moment."""
    return [draft, *(draft.with_name(f"{draft.name}.moment-{number}") for number in range(1, moments + 1))]
