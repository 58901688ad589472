"""The list of members, with the peer keys that the other partners pin."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from support.memory_coordinator import MemoryCoordinator

from pluralllm.common.words.ids import ClientId
from pluralllm.server.rpc.member_operations import MemberOperations


@dataclass(frozen=True)
class KnownKeys:
    """A roster of the members that have a peer key."""

    fingerprints: Mapping[str, str]

    def fingerprint_of(self, name: ClientId) -> str | None:
        return self.fingerprints.get(name)


async def test_each_member_is_listed_with_the_fingerprint_of_its_peer_key(tmp_path: Path) -> None:
    place, unused = MemoryCoordinator(tmp_path), cast("Any", None)
    await place.collecting("ann", "ben")
    parts = place.parts
    members = MemberOperations(
        coordinator=parts.coordinator,
        registry=None,
        roster=cast("Any", KnownKeys({"ann": "ab" * 32})),
        advertised=unused,
        store=parts.store,
        sessions=parts.sessions,
        leases=parts.leases,
        clock=parts.clock,
        signatures=unused,
        links=unused,
    )
    listed = {member.name: member.peer_key_sha256 for member in await members.everyone()}
    assert listed == {"members/ann": "ab" * 32, "members/ben": ""}
