"""A member registers one peer key, proves that it holds the key, and changes it only after an administrator's reset."""

import pytest
from support.memory_store import MemoryMembership, Tables

from pluralllm.common.errors.private_rounds import PeerKeyDiffers, RosterDiverged
from pluralllm.common.errors.tree import InvalidArgument, NotFound
from pluralllm.common.private_rounds.peer_keys import PeerKeyClaim, endorsed, fingerprint, public_der
from pluralllm.common.private_rounds.roster import Roster
from pluralllm.common.trust.certificates import PrivateKey, new_key
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.roles import MemberRole
from pluralllm.server.members.access import Principal
from pluralllm.server.members.audit_log import AuditLog
from pluralllm.server.members.roster_log import RosterLog

ANN, BEN = (Principal(ClientId(name), MemberRole.CLIENT) for name in ("ann", "ben"))
ROOT = Principal(ClientId("root"), MemberRole.ADMIN)
FEDERATION = "fed"


def claim(
    key: PrivateKey, name: str = "ann", certificate: PrivateKey | None = None, federation: str = FEDERATION
) -> PeerKeyClaim:
    """Returns the claim of a peer key. certificate: the key that endorses it; None in plain text."""
    said = (federation, name, public_der(key))
    return PeerKeyClaim(
        public_der(key), b"" if certificate is None else endorsed(certificate, *said), endorsed(key, *said)
    )


class Place:
    """A roster over tables in memory. With certificate keys, a claim needs the endorsement by one of them."""

    def __init__(self, *certificates: PrivateKey) -> None:
        self.tables = Tables()
        self.certificates = [key.public_key() for key in certificates]

    async def open(self) -> RosterLog:
        """Returns the roster as a process finds it at its start."""
        membership = MemoryMembership(self.tables)
        self.audit = AuditLog(membership, lambda: 1.0)
        keys = (lambda _: self.certificates) if self.certificates else None
        roster = RosterLog(membership, self.audit, FEDERATION, keys)
        await roster.start()
        return roster

    def audited(self) -> list[tuple[str, str, str, str]]:
        return [(entry.actor, entry.action, entry.object, entry.result) for entry, _ in self.tables.audit_log]


async def test_a_key_is_registered_once_and_audited_once() -> None:
    place, key = Place(), new_key()
    roster = await place.open()
    assert (roster.head, roster.peer_key(ANN.name)) == (b"", None)
    for _ in range(2):
        await roster.register(ANN, "G", claim(key))
    (entry,) = roster.entries(0, 10)
    assert (entry.name, entry.group, entry.fingerprint, entry.change) == (
        "ann",
        "G",
        fingerprint(public_der(key)),
        "added",
    )
    assert (roster.head, roster.peer_key(ANN.name)) == (entry.head_after(b""), public_der(key))
    assert place.audited() == [("ann", "RegisterPeerKey", "members/ann", "ACCEPTED")]
    assert roster.entries(1, 10) == []


async def test_a_restart_finds_the_same_roster() -> None:
    place, keys = Place(), [new_key(), new_key()]
    roster = await place.open()
    await roster.register(ANN, "G", claim(keys[0]))
    await roster.register(BEN, "H", claim(keys[1], "ben"))
    await roster.reset(ROOT, ANN.name)
    again = await place.open()
    assert (again.head, again.entries(0, 10)) == (roster.head, roster.entries(0, 10))
    assert [again.peer_key(name) for name in (ANN.name, BEN.name)] == [None, public_der(keys[1])]
    assert [entry.sequence for entry in again.entries(1, 1)] == [2]


async def test_another_key_of_a_member_is_refused_until_it_is_reset() -> None:
    place, old, new = Place(), new_key(), new_key()
    roster = await place.open()
    await roster.register(ANN, "G", claim(old))
    with pytest.raises(PeerKeyDiffers) as refused:
        await roster.register(ANN, "G", claim(new))
    fingerprints = [fingerprint(public_der(key)) for key in (old, new)]
    assert [refused.value.known, refused.value.got] == fingerprints
    assert "pluralllm members reset-peer-key ann" in str(refused.value)
    assert roster.peer_key(ANN.name) == public_der(old)
    await roster.reset(ROOT, ANN.name)
    assert roster.peer_key(ANN.name) is None
    await roster.register(ANN, "G", claim(new))
    assert [entry.change for entry in roster.entries(0, 10)] == ["added", "removed", "replaced"]
    assert Roster().extended(roster.entries(0, 10)).head == roster.head
    assert place.audited() == [
        ("ann", "RegisterPeerKey", "members/ann", "ACCEPTED"),
        ("ann", "RegisterPeerKey", "members/ann", "PEER_KEY_DIFFERS"),
        ("root", "ResetPeerKey", "members/ann", "ACCEPTED"),
        ("ann", "RegisterPeerKey", "members/ann", "ACCEPTED"),
    ]


async def test_a_reset_may_be_repeated_and_needs_a_key_that_was_there_once() -> None:
    place = Place()
    roster = await place.open()
    with pytest.raises(NotFound, match="no peer key of ann"):
        await roster.reset(ROOT, ANN.name)
    await roster.register(ANN, "G", claim(new_key()))
    for _ in range(2):
        await roster.reset(ROOT, ANN.name)
    assert [action for _, action, _, _ in place.audited()] == ["RegisterPeerKey", "ResetPeerKey"]


async def test_nobody_registers_a_key_that_another_member_has_or_had() -> None:
    place, key = Place(), new_key()
    roster = await place.open()
    await roster.register(ANN, "G", claim(key))
    for _ in range(2):
        with pytest.raises(InvalidArgument, match="is the key of another member"):
            await roster.register(BEN, "H", claim(key, "ben"))
        if roster.removal_of(ANN.name):
            await roster.reset(ROOT, ANN.name)
    assert roster.peer_key(BEN.name) is None


async def test_a_claim_is_proven_by_its_own_key_for_this_member_and_federation() -> None:
    place, key = Place(), new_key()
    roster = await place.open()
    other = claim(new_key())
    bad = [
        claim(key, "ben"),
        claim(key, federation="other"),
        PeerKeyClaim(public_der(key), b"", other.proof),
        PeerKeyClaim(public_der(key), b"", b""),
        PeerKeyClaim(b"", b"", b""),
    ]
    for one in bad:
        with pytest.raises(InvalidArgument, match="peer_key"):
            await roster.register(ANN, "G", one)
    assert roster.head == b""
    assert {row[3] for row in place.audited()} == {"INVALID_ARGUMENT"}


async def test_a_claim_is_endorsed_by_any_valid_certificate_of_the_member() -> None:
    before, now, stranger, key = new_key(), new_key(), new_key(), new_key()
    roster = await Place(before, now).open()
    for endorser in (None, stranger, key):
        with pytest.raises(InvalidArgument, match=r"peer_key\.endorsement"):
            await roster.register(ANN, "G", claim(key, certificate=endorser))
    for endorser in (before, now):  # during a renewal both count, and a repetition changes nothing
        await roster.register(ANN, "G", claim(key, certificate=endorser))
    assert len(roster.entries(0, 10)) == 1
    with pytest.raises(InvalidArgument, match=r"peer_key\.endorsement"):  # also of a key that is registered
        await roster.register(ANN, "G", claim(key, certificate=stranger))


@pytest.mark.parametrize("field", ["head", "key_der"])
async def test_a_stored_row_that_was_changed_is_noticed_at_the_start(field: str) -> None:
    place = Place()
    await (await place.open()).register(ANN, "G", claim(new_key()))
    object.__setattr__(place.tables.roster[0], field, b"x")
    with pytest.raises(RosterDiverged, match="entry 1 is not what its hash says"):
        await place.open()
