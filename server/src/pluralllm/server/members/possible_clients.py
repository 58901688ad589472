"""The clients that can come: members that are not revoked and whose certificates have not expired, and open invites."""

from collections.abc import Iterator

from pluralllm.common.words.roles import MemberRole
from pluralllm.server.members.registry import Registry
from pluralllm.server.storage.membership import InviteRecord, Member, MemberState

CANNOT_COME = (MemberState.REVOKED, MemberState.EXPIRED)  # without a new invite, which is then open


def possible_clients(registry: Registry) -> Iterator[Member | InviteRecord]:
    """Yields every client that may call Hello, now or as soon as it has joined or is approved. An invite may repeat a name."""
    for invite in registry.open_invites():
        if invite.role is MemberRole.CLIENT:
            yield invite
    for member in registry.members():
        if member.role is MemberRole.CLIENT and registry.state_of(member) not in CANNOT_COME:
            yield member
