"""Checks after private rounds: each version is the sum without masks, and nobody has revealed a secret in both kinds.

The clients have kept the numbers of their updates without masks, and a copy of each message that they have sent.
"""

import asyncio
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from drill.private_clients import SAID, UNMASKED

from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.private_rounds.messages import Reveal
from pluralllm.common.private_rounds.sum_files import sum_of, write_from_sum
from pluralllm.common.process.configuration import load_config
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.weights.server_optimizer import first_moments, server_optimizer
from pluralllm.common.weights.stored_weights import StoredWeights
from pluralllm.common.wire.round_steps import step_body
from pluralllm.common.words.ids import RunId
from pluralllm.common.words.spec import RunSpec, parse_spec
from pluralllm.server.aggregation.next_version import stored_base
from pluralllm.server.aggregation.private_version import read_transcript
from pluralllm.server.process.config import ServerConfig
from pluralllm.server.storage.blobs import Blobs
from pluralllm.server.storage.by_url import blobs_of, opened_alone
from pluralllm.server.storage.state_directory import StateDirectory
from pluralllm.v1 import federation_pb2 as pb

RUN = RunId("r")


def wrong_sums(config: Path, folder: Path) -> list[str]:
    """Returns a line for each version that is not the sum without masks; the bits are compared.

    config: the coordinator's, which must have ended. folder: with the home of each client.
    """
    return asyncio.run(_wrong_sums(load_config(ServerConfig, config, {}), folder))


async def _wrong_sums(config: ServerConfig, folder: Path) -> list[str]:
    problems = []
    with StateDirectory(config.state_dir) as state:
        async with opened_alone(config, state) as store:
            spec = next(parse_spec(run.spec_json, "of the run") for run in await store.runs() if run.id == RUN)
            versions, blobs = await store.versions(RUN), blobs_of(config, state)
            for base, version in pairwise(versions):
                if await _bits_without_masks(blobs, spec, base, version, folder) != (version.digest, *version.moments):
                    problems.append(f"version {version.version} is not the sum of its updates without masks")
    return problems


async def _bits_without_masks(
    blobs: Blobs, spec: RunSpec, base: VersionRecord, version: VersionRecord, folder: Path
) -> tuple[str, ...]:
    """Returns the digests of the version and of its moments, made from the numbers that its clients have kept."""
    fixed = (await read_transcript(blobs, version)).fixed
    files = [folder / client / UNMASKED / digest for client, digest, _ in version.updates]
    updates = [StoredWeights(file, manifest_of(file).digest) for file in files]
    first = first_moments(spec.aggregation)
    start, *kept = await stored_base(blobs, base, len(first) if base.version else 0)
    with tempfile.TemporaryDirectory() as drafts:
        manifests, _ = write_from_sum(
            start,
            kept or first,
            sum_of(spec, fixed, (), updates),  # without masks, no streams are left over
            layout_for(spec),
            server_optimizer(spec.aggregation),
            [Path(drafts) / str(number) for number in range(1 + len(first))],
        )
    return tuple(manifest.digest for manifest in manifests)


def revealed_twice(homes: Sequence[Path]) -> Iterator[str]:
    """Yields a line for each member that has sent two shares of one dealer, and for each round with reveals for two sums.

    A share is of one of the dealer's two secrets, and the sum says of which. So no secret was revealed in both kinds if all
    members have revealed for one sum, and each has one share of each dealer only.
    """
    sums: dict[str, set[bytes]] = defaultdict(set)
    for home in homes:
        values: dict[tuple[str, int], set[bytes]] = defaultdict(set)
        for task, reveal in reveals_of(home):
            sums[task.partition("/tasks/")[0]].add(reveal.sum_sha256)
            for index, value in reveal.values.items():
                values[task, index].add(value)
        for (task, index), different in values.items():
            if len(different) > 1:
                yield f"{task}: {home.name} has sent {len(different)} shares of member {index}"
    for name, different in sums.items():
        if len(different) > 1:
            yield f"{name}: the members have revealed for {len(different)} sums"


def reveals_of(home: Path) -> Iterator[tuple[str, Reveal]]:
    """Yields the reveals that a client has sent, each with the name of its task."""
    for path in sorted((home / SAID).glob("*")):
        if not path.suffix:
            request = pb.PutRoundStepRequest.FromString(path.read_bytes())
            body = step_body(request)
            if isinstance(body, Reveal):
                yield request.task, body
