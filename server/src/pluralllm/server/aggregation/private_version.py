"""Makes the files of the version that a private round makes, and the round's transcript, from the stored masked updates.

The coordinator makes them from the messages of the members. The command `verify` makes the version again from the transcript,
and compares the bits.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pluralllm.common.errors.private_rounds import AggregateDiffers, SumImplausible
from pluralllm.common.errors.tree import BaseLost, Corrupt, NotFound, UpdateLost
from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.private_rounds.masks import SignedKey
from pluralllm.common.private_rounds.messages import Confirmation, Reveal, Shares
from pluralllm.common.private_rounds.round_sum import FixedRound, leftover_streams, open_round
from pluralllm.common.private_rounds.sum_files import sum_of, write_from_sum
from pluralllm.common.private_rounds.transcript import Transcript
from pluralllm.common.process.files import storage_errors
from pluralllm.common.sums.solver_files import state_files, write_next_private_sum
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.weights.chunks import Manifest, manifest_of
from pluralllm.common.weights.server_optimizer import first_moments, optimizer_of_round
from pluralllm.common.words.ids import Digest
from pluralllm.common.words.spec import RunSpec
from pluralllm.server.aggregation.next_version import Draft, NextVersion, drafts_beside, first_lost, stored, stored_base
from pluralllm.server.storage.blobs import Blobs, verify


@dataclass(frozen=True, slots=True)
class RoundMaterial:
    """All that the members of a private round have sent, checked message by message."""

    fixed: FixedRound
    shares: Mapping[str, Shares]  # of each dealer
    confirmations: Mapping[str, Confirmation]
    reveals: Mapping[str, Reveal]


async def write_private(
    blobs: Blobs, spec: RunSpec, base: VersionRecord, material: RoundMaterial, draft: Path
) -> NextVersion:
    """Writes the next version to `draft`, the new moments and the transcript beside it. After an error no file is left.

    base: the model version that the round trains from. Raises DealtWrongly if a member's secret is not the one it has signed;
    SumImplausible if the sum cannot be one of honest updates; BaseLost, UpdateLost, Corrupt, NotFound or StorageFull as
    next_version.write_next.
    """
    opened = await asyncio.to_thread(open_round, material.fixed, material.shares, material.reveals)
    leftover = leftover_streams(material.fixed, opened)
    weights, tail = await write_sum(blobs, spec, base, material.fixed, leftover, draft)
    transcript = Transcript.of(material.fixed, opened, material.shares, material.confirmations, tail)
    path = draft.with_name(f"{draft.name}.transcript")
    try:
        manifest = await asyncio.to_thread(_write, path, transcript.to_json())
    except BaseException:
        for written in (path, *(made.path for made in weights)):
            written.unlink(missing_ok=True)
        raise
    return NextVersion(weights, transcript=Draft(path, manifest), tail=tail)


async def read_transcript(blobs: Blobs, record: VersionRecord) -> Transcript:
    """Returns the transcript of the private round that made a version. Raises InvalidArgument, Corrupt or NotFound."""
    digest = Digest(record.transcript)
    path = await blobs.path(digest)
    await asyncio.to_thread(verify, path, digest)
    return Transcript.from_json(await asyncio.to_thread(path.read_bytes))


async def write_again(
    blobs: Blobs, spec: RunSpec, base: VersionRecord, record: VersionRecord, draft: Path
) -> NextVersion:
    """Writes a version of a private round again, from its transcript and the masked updates, and returns its files.

    record: the record of the version. Raises AggregateDiffers if the transcript is not one of this version's round, the errors of
    Transcript.opened if it is none of an honest round, and the errors of `write_private`.
    """
    transcript, path = await read_transcript(blobs, record), await blobs.path(Digest(record.transcript))
    updates = tuple((update.name, update.digest.hex()) for update in transcript.updates)
    if updates != tuple((client, digest) for client, digest, _ in record.updates):
        raise AggregateDiffers(
            run=record.run,
            version=record.version,
            problem="its record and its transcript name other updates",
            evidence=str(path),
        )
    opened = await asyncio.to_thread(transcript.opened)
    leftover = leftover_streams(transcript.fixed, opened)
    weights, tail = await write_sum(blobs, spec, base, transcript.fixed, leftover, draft)
    if tail != transcript.tail:
        for made in weights:
            made.path.unlink(missing_ok=True)
        raise AggregateDiffers(
            run=record.run, version=record.version, problem="the sum has another tail", evidence=str(path)
        )
    return NextVersion(weights, tail=tail)


async def write_sum(
    blobs: Blobs, spec: RunSpec, base: VersionRecord, fixed: FixedRound, leftover: Sequence[SignedKey], draft: Path
) -> tuple[tuple[Draft, ...], tuple[int, ...]]:
    """Writes the next version and its moments from the masked updates. Returns the files, and the tail of the sum."""
    digests = [Digest(update.digest.hex()) for update in fixed.updates]
    try:
        return await _write_sum(blobs, spec, base, fixed, leftover, digests, draft)
    except (Corrupt, NotFound, SumImplausible):  # a changed file makes an implausible sum before its digest is known
        if (lost := await first_lost(blobs, (base.digest, *base.moments))) is not None:
            raise BaseLost(*lost) from None
        if (lost := await first_lost(blobs, digests)) is not None:
            raise UpdateLost(*lost) from None
        raise


async def _write_sum(
    blobs: Blobs,
    spec: RunSpec,
    base: VersionRecord,
    fixed: FixedRound,
    leftover: Sequence[SignedKey],
    digests: Sequence[Digest],
    draft: Path,
) -> tuple[tuple[Draft, ...], tuple[int, ...]]:
    start, *kept = await stored_base(blobs, base, state_files(spec, base.version))
    updates = [await stored(blobs, digest) for digest in digests]
    outs = drafts_beside(draft, state_files(spec, base.version + 1))
    summed = sum_of(spec, fixed, leftover, updates)
    if spec.sums is not None:
        write = partial(write_next_private_sum, spec, base.version, start, kept, summed, outs)
    else:
        moments, optimizer = kept or first_moments(spec.aggregation), optimizer_of_round(spec, fixed.terms.round)
        write = partial(write_from_sum, start, moments, summed, layout_for(spec), optimizer, outs)
    with storage_errors("the next model version"):
        manifests, tail = await asyncio.to_thread(write)
    return tuple(Draft(out, manifest) for out, manifest in zip(outs, manifests, strict=True)), tail


def _write(path: Path, body: bytes) -> Manifest:
    with storage_errors("the transcript of a private round"):
        path.write_bytes(body)
        return manifest_of(path)
