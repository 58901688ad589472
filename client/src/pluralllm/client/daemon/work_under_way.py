"""The daemon's records of its task and of its runs, in memory, and what else it is made from."""

import asyncio
from dataclasses import dataclass
from typing import Self

from pluralllm.client.disclosure.policy import Policy
from pluralllm.client.joining.partner import Partner
from pluralllm.client.link.tasks import Task
from pluralllm.client.link.transport import Transport
from pluralllm.client.privacy.declaration import Account
from pluralllm.client.private_rounds.pins import pins_file
from pluralllm.client.private_rounds.roster_watch import RosterWatch
from pluralllm.client.process.config import ClientConfig
from pluralllm.common import __version__
from pluralllm.common.errors.tree import InvalidSpec
from pluralllm.common.words.ids import RunId
from pluralllm.common.words.spec import RunSpec, parse_spec


@dataclass(slots=True)
class Work:
    """The task that the daemon works on, and the asyncio task that does the work."""

    task: Task
    doing: "asyncio.Task[None]"
    stage: str = "starting"


@dataclass(slots=True)
class JoinedRun:
    """The run spec of a run that this client takes part in, in two forms: parsed, and as canonical JSON."""

    spec: RunSpec
    spec_json: bytes

    @classmethod
    def of(cls, run: RunId, spec_json: bytes, release: str) -> Self:
        """Reads the spec that the coordinator has sent. release: the coordinator's; empty if it states none.

        Raises InvalidSpec; if the coordinator's release is another than this client's, the error names both.
        """
        try:
            return cls(parse_spec(spec_json, f"of run {run}"), spec_json)
        except InvalidSpec as error:
            if release in ("", __version__):
                raise
            hint = f"  the coordinator runs release {release}, this client {__version__}; install the newer one on both sides"
            raise InvalidSpec(file=error.file, problems=f"{hint}\n{error.problems}") from error


def account_of(policy: Policy, config: ClientConfig) -> Account | None:
    """Returns the account of the privacy loss; None if the client uses the true answers."""
    privacy = policy.privacy
    if privacy is None:
        return None
    folder = privacy.ledger_folder(config.state_dir)
    return Account(folder, config.data, privacy.delta, privacy.questions_per_respondent)


def peers_of(config: ClientConfig, partner: Partner, policy: Policy, transport: Transport) -> RosterWatch:
    """Returns this client's peer key and its watch over the roster. The key is made if there is none yet."""
    pins = pins_file(config.policy, config.state_dir) if policy.private_rounds.trust == "first_use" else None
    return RosterWatch.of(config.state_dir.absolute(), partner.name, config.identity_folder, transport.roster, pins)
