"""The command `pluralllm-client verify`: computes the model version of a private round again and compares all bytes."""

import asyncio
import hashlib
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from pluralllm.client.disclosure.policy import load_policy
from pluralllm.client.joining.partner import identity_of
from pluralllm.client.keeping.history import History
from pluralllm.client.private_rounds.pins import pins_file
from pluralllm.client.private_rounds.roster_watch import RosterWatch
from pluralllm.client.process.config import JoinConfig
from pluralllm.common.errors.tree import NotFound
from pluralllm.common.process.configuration import load_config
from pluralllm.common.process.console import say
from pluralllm.common.process.logs import configure_logs
from pluralllm.common.trust.identity import Identity
from pluralllm.common.weights.server_optimizer import first_moments
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.spec import parse_spec


def verify(
    run: Annotated[str, typer.Argument(help="The name of a run.")],
    number: Annotated[int, typer.Argument(metavar="ROUND", help="The number of a closed private round of the run.")],
    config: Annotated[Path | None, typer.Option("--config", help="The daemon's TOML file.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="The daemon's state directory.")] = None,
) -> None:
    """Compute the model version of a private round again, from its transcript and its masked updates, and compare all bytes.

    The daemon does the same before it trains on the version. The coordinator keeps the files of a round for some rounds only.
    """
    paths = load_config(JoinConfig, config, {"state_dir": state_dir})
    identity = identity_of(paths)
    configure_logs(form="console", level="WARNING")
    version, names = asyncio.run(verified(paths, identity, RunId(run), RoundNumber(number)))
    say(f"version {version} of run {run} is the sum of {len(names)} updates, byte for byte: {', '.join(names)}")


async def verified(
    paths: JoinConfig, identity: Identity, run: RunId, number: RoundNumber
) -> tuple[ModelVersion, tuple[str, ...]]:
    """Returns the version that a round has made, and the members whose updates are in it, after computing it again.

    Raises NotFound if this client has not seen a version of the round; the errors of `Verification.check`.
    """
    # Imported here, because gRPC takes a moment and help does not need it.
    from pluralllm.client.link.transport import Transport  # noqa: PLC0415
    from pluralllm.client.private_rounds.verification import Knowledge, Verification  # noqa: PLC0415

    state, name = paths.state_dir.absolute(), ClientId(identity.membership.name)
    history = History(state / "history", name)
    made = [version for version, seen in history.seen(run).versions.items() if version and seen.round == number]
    if not made:
        raise NotFound(what="history", name=f"of round {number} of run {run} in {state / 'history'}")
    policy = paths.policy or state / "policy.toml"
    rules = load_policy(policy if policy.is_file() else None).private_rounds
    transport = Transport.of_member(identity)
    try:
        peers = RosterWatch.of(state, name, identity.folder, transport.roster)
        pins = pins_file(paths.policy, state)
        knowledge = Knowledge(state, identity.membership.federation, history, peers, pins, rules.colluders, 1.0)
        spec_json = await transport.run_spec(run)
        with tempfile.TemporaryDirectory(dir=state) as work:
            verification = Verification(knowledge, transport, Path(work))
            spec, sha256 = parse_spec(spec_json, f"of run {run}"), Digest(hashlib.sha256(spec_json).hexdigest())
            # The state of the server optimizer follows from all versions before.
            first = ModelVersion(1) if first_moments(spec.aggregation) else made[0]
            for version in range(first, made[0]):
                await verification.check(run, ModelVersion(version), spec, sha256)
            return made[0], await verification.check(run, made[0], spec, sha256)
    finally:
        await transport.close()
