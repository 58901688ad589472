"""Creates a run from its spec: model version 0, and the database rows that make the run durable."""

import asyncio
import uuid
from collections.abc import Mapping
from pathlib import Path

from pluralllm.common.errors.tree import InvalidSpec, NotFound
from pluralllm.common.predictor.architecture import layout_for, version_layout
from pluralllm.common.predictor.first_version import write_first_version
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.words.ids import Digest, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.names import ModelName
from pluralllm.common.words.reward_weights import RewardRun
from pluralllm.common.words.spec import RunSpec
from pluralllm.server.runs.live_run import LiveRun, Progress, first_state
from pluralllm.server.storage.blobs import Blobs
from pluralllm.server.storage.store import RunRecord, Store


async def make_run(
    store: Store,
    blobs: Blobs,
    scratch: Path,
    sources: Mapping[RunId, LiveRun],
    run_id: RunId,
    spec: RunSpec,
    now_s: float,
) -> LiveRun:
    """Creates a run, writes its database rows and returns the run.

    Version 0 of a training run has the initial values. A run that asks for rewards takes version 0 from one of the runs in
    `sources`. The caller must prevent the deletion of blobs during the call. Raises NotFound if the version that the spec names
    does not exist; InvalidSpec if the version does not fit the spec; StorageFull or StoreFailed if the run cannot be stored.
    """
    if spec.rewards is None:
        digest = await _first_values(blobs, scratch, run_id, spec)
    else:
        digest = await _source_of(store, sources, spec, spec.rewards)
    record = RunRecord(run_id, spec.canonical_json(), spec.sha256(), now_s)
    first = VersionRecord(run_id, ModelVersion(0), RoundNumber(0), digest, spec.sha256(), "", (), now_s)
    await store.create_run(record, first)
    progress = Progress(first_state(record, spec, first), first, updated_s=now_s)
    return LiveRun(record, spec, layout_for(spec), first, progress)


async def _first_values(blobs: Blobs, scratch: Path, run_id: RunId, spec: RunSpec) -> Digest:
    draft = scratch / f"{run_id}-{uuid.uuid4().hex}.safetensors"
    manifest = await asyncio.to_thread(write_first_version, draft, spec)
    await blobs.put(manifest.digest, draft)
    return manifest.digest


async def _source_of(store: Store, sources: Mapping[RunId, LiveRun], spec: RunSpec, rewards: RewardRun) -> Digest:
    """Returns the digest of the model version with which clients calculate the rewards of a new run.

    `rewards`, a part of the spec, names the version. The version must belong to a training run of the same coordinator. The
    predictor and the embedding in `spec` must be equal to those of the training run.
    Raises NotFound if the version does not exist; InvalidSpec if the version does not fit.
    """
    source = ModelName.parse(rewards.source)
    run = sources.get(source.run)
    version = None
    if run is not None and source.version is not None:
        version = await store.version(source.run, source.version)
    if run is None or version is None:
        raise NotFound(what="model version", name=rewards.source)
    problems = [
        f"  {part}: is not that of run {source.run}, whose model is to be used"
        for part, here, there in (
            ("predictor", spec.predictor, run.spec.predictor),
            ("embedding", spec.embedding, run.spec.embedding),
        )
        if here != there
    ]
    if version.digest != rewards.model_digest:
        named, actual = rewards.model_digest[:12], version.digest[:12]
        problems.append(f"  rewards.model_digest: is {named}, that of {rewards.source} is {actual}")
    if version_layout(run.spec, source.version or 0) != layout_for(run.spec):
        problems.append(f"  rewards.source: {rewards.source} has no group projection yet; name a later version")
    if run.spec.rewards is not None:
        problems.append(f"  rewards.source: run {source.run} has rewards for versions; name the run they came from")
    if problems:
        raise InvalidSpec(file=f"of a run with the rewards of {rewards.source}", problems="\n".join(problems))
    return version.digest
