"""Makes hundreds or thousands of members of a coordinator that does not run, in one transaction, for benchmarks."""

import time
from collections.abc import Sequence
from pathlib import Path

from pluralllm.client.link.channel import Connection
from pluralllm.client.link.transport import OPTIONS, Transport
from pluralllm.common.trust.certificates import key_to_pem, new_key, read_certificate
from pluralllm.common.trust.identity import Identity, Membership
from pluralllm.common.wire.channels import secure_channel
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.members.authority import Authority, load_authority
from pluralllm.server.storage.membership import IssuedCertificate, Member, MembershipChange, NewAuditEntry
from pluralllm.server.storage.sql_membership import SqlMembership
from pluralllm.server.storage.sql_store import open_store

LIFE_S = 30 * 86_400.0


async def issue_members(state: Path, names: Sequence[str]) -> list[Identity]:
    """Makes clients with a group each members, with certificates of the authority in the state directory `state`.

    The identities are in memory only, and have no address of the coordinator yet.
    """
    authority, now_s = load_authority(state / "authority"), time.time()
    made = [_issue(authority, ClientId(name), now_s) for name in names]
    await _register(state, [member for member, _, _ in made], [issued for _, issued, _ in made])
    return [identity for _, _, identity in made]


def _issue(authority: Authority, name: ClientId, now_s: float) -> tuple[Member, IssuedCertificate, Identity]:
    key, role, group = new_key(), MemberRole.CLIENT, f"group of {name}"
    chain_pem = authority.issue_member(key.public_key(), name, role, LIFE_S, now_s)
    facts = read_certificate(chain_pem)
    issued = IssuedCertificate(facts.serial, name, facts.key_sha256, facts.not_after_s, now_s, chain_pem)
    address = "127.0.0.1:0"
    membership = Membership(
        federation=authority.federation,
        name=name,
        role=role,
        group=group,
        group_role=GroupRole.TRAIN,
        coordinator=address,
        enrolment=address,
    )
    identity = Identity(Path(), membership, authority.root_pem, key_to_pem(key), chain_pem, facts)
    return Member(name, role, group, GroupRole.TRAIN, approved=True, created_s=now_s), issued, identity


async def _register(state: Path, members: Sequence[Member], issued: Sequence[IssuedCertificate]) -> None:
    store = await open_store(f"sqlite+aiosqlite:///{state / 'coordinator.sqlite3'}")
    try:
        entry = NewAuditEntry(time.time(), "benchmark", "", "MakeMembers", "members", "ACCEPTED")
        await SqlMembership(store).change_membership(MembershipChange(entry, tuple(members), tuple(issued)))
    finally:
        await store.close()


def connected_by(identity: Identity, address: str) -> Transport:
    """Returns a member's transport with a TLS connection of its own.

    Without this function's channel option, gRPC shares one connection among all channels of a process that have equal keys.
    """
    options = (("grpc.use_local_subchannel_pool", 1), *OPTIONS)
    connection = Connection([address], lambda at: secure_channel(identity.at(at), options))
    return Transport(connection, ClientId(identity.membership.name), in_plain_text=False)
