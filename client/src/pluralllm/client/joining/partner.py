"""The name, group and role of this daemon: from its certificate or, in plain text on loopback, from its configuration."""

from dataclasses import dataclass

from pluralllm.client.process.config import ClientConfig, JoinConfig
from pluralllm.common.errors.tree import InvalidConfig
from pluralllm.common.trust.identity import Identity, load_identity
from pluralllm.common.words.addresses import PLAIN_TEXT_ADDRESS, check_loopback
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole

COMMAND = "pluralllm-client"


@dataclass(frozen=True, slots=True)
class Partner:
    """One client of the federation: its name, its group, its role and its coordinator's address."""

    name: ClientId
    group: str
    role: GroupRole  # held_out: this client never trains, whatever the coordinator asks
    coordinator: str
    identity: Identity | None  # None in plain text


def identity_of(config: JoinConfig | ClientConfig) -> Identity:
    """Returns this client's identity, which calls the coordinator by the addresses and proxies of its configuration.

    Raises NotJoined if there is no certificate; InvalidConfig if a file of the identity is missing or damaged.
    """
    identity = load_identity(config.identity_folder, COMMAND)
    return identity.at(config.coordinator, config.enrolment).through(config.proxies)


def load_partner(config: ClientConfig) -> Partner:
    """Reads this daemon's name, group and role, and checks that its configuration agrees with its certificate.

    Raises NotJoined if there is no certificate; NotLoopback for plain text to another machine; InvalidConfig if configuration
    and certificate contradict each other, or if plain text is used and client_id or group is missing.
    """
    if config.plain_text:
        address = config.coordinator or PLAIN_TEXT_ADDRESS
        check_loopback(address)
        if config.client_id is None or config.group is None:
            problem = "  client_id, group: in plain text both are needed; with a certificate it says who this is"
            raise InvalidConfig(file="(plain_text)", problems=problem)
        return Partner(ClientId(config.client_id), config.group, config.role or GroupRole.TRAIN, address, None)
    identity = identity_of(config)
    member = identity.membership
    if member.role is not MemberRole.CLIENT:
        problem = f"  the certificate is for an {member.role}; a daemon needs one for a client"
        raise InvalidConfig(file=str(config.identity_folder), problems=problem)
    role = member.group_role or GroupRole.TRAIN
    configured = {"client_id": config.client_id, "group": config.group, "role": config.role}
    proven = {"client_id": member.name, "group": member.group, "role": role}
    wrong = [
        f"  {key}: is {value}, the certificate's member has {proven[key]}"
        for key, value in configured.items()
        if value not in (None, proven[key])
    ]
    if wrong:
        raise InvalidConfig(
            file="client configuration",
            problems="\n".join([*wrong, "  leave these keys out: the certificate says who this is"]),
        )
    return Partner(member.name, member.group, role, member.coordinator, identity)
