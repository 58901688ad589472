"""The registry over a store in memory: who is known, for how long, and the facts of each entry of the audit log."""

import asyncio
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from support.memory_store import MemoryMembership, Tables

from pluralllm.common.errors.membership import (
    CertificateExpired,
    CertificateInvalid,
    CertificateRevoked,
    CertificateUnknown,
    InviteExpired,
    InviteUnknown,
    InviteUsed,
    LastAdmin,
    MemberExists,
)
from pluralllm.common.errors.tree import InvalidArgument, NotFound, OverLimit
from pluralllm.common.private_rounds.peer_keys import PeerKeyClaim, endorsed, public_der
from pluralllm.common.trust.certificates import fingerprint, make_request, new_key, read_certificate
from pluralllm.common.trust.invite import token_hash
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.members.access import ALL_RUNS, Principal
from pluralllm.server.members.audit_log import AuditLog
from pluralllm.server.members.authority import create_authority, day, load_authority
from pluralllm.server.members.invite_order import MAX_EXAMPLES, MAX_RUNS, MAX_TTL_S, InviteOrder
from pluralllm.server.members.registry import MAX_LIVE_CERTIFICATES, Registry
from pluralllm.server.storage.membership import DEFAULT_MAX_EXAMPLES, MemberState

CLIENT, OBSERVER, ADMIN = MemberRole.CLIENT, MemberRole.OBSERVER, MemberRole.ADMIN
ROOT = Principal(ClientId("root"), ADMIN, "1f")
LIFE_S = 1000.0


async def others_go_on(operation: str, about: object) -> None:
    """Lets other tasks go on before an operation of the store, as a database does."""
    await asyncio.sleep(0)


class Place:
    """A registry over tables in memory, with a clock that a test sets."""

    def __init__(self, folder: Path) -> None:
        self.now_s, self.tables = 1_800_000_000.0, Tables()
        if not (folder / "authority").exists():
            create_authority(folder / "authority", "fed", ["127.0.0.1"], None, self.now_s)
        self._authority = load_authority(folder / "authority")
        self.registry = self.opened()

    def opened(self) -> Registry:
        """Returns a registry of another process over the same tables; it has read nothing yet."""
        store = MemoryMembership(self.tables, others_go_on)
        return Registry(store, AuditLog(store, lambda: self.now_s), self._authority, LIFE_S, lambda: self.now_s)

    async def invited(self, name: str, role: MemberRole = CLIENT, **order: Any) -> str:
        runs = {"runs": (ALL_RUNS,)} if role is OBSERVER else {}
        return (await self.registry.invite(ROOT, InviteOrder(name, role, **{**runs, **order})))[1]

    async def joined(self, name: str, role: MemberRole = CLIENT, **order: Any) -> bytes:
        """Returns the certificate chain of a new member."""
        token = await self.invited(name, role, **order)
        return (await self.registry.join(name, token, request()))[1]

    def newest_entry(self) -> tuple[str, str, str, dict[str, Any]]:
        """Returns actor, action, object and facts of the newest audit entry."""
        entry = self.tables.audit_log[-1][0]
        return entry.actor, entry.action, entry.object, json.loads(entry.facts_json)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("authority")


@pytest.fixture
def place(authority: Path) -> Place:
    return Place(authority)


def request() -> bytes:
    return make_request(new_key(), "x")


# Certificates


async def test_a_certificate_is_known_by_its_serial_its_name_and_its_key(place: Place) -> None:
    chain = await place.joined("ann")
    registry, facts = place.registry, read_certificate(chain)
    issued = registry._certificates[facts.serial]
    assert registry.principal(chain).name == "ann"
    assert registry.known_serial(chain) == facts.serial
    for other in (
        replace(issued, member=ClientId("ben")),
        replace(issued, key_sha256="0" * 64),
    ):
        registry._certificates[facts.serial] = other
        assert registry.known_serial(chain) is None
        with pytest.raises(CertificateUnknown, match="ann"):
            registry.principal(chain)
    registry._certificates[facts.serial] = issued
    member = registry._members.pop(ClientId("ann"))
    with pytest.raises(CertificateUnknown):
        registry.principal(chain)
    registry._members[member.name] = member
    del registry._certificates[facts.serial]
    assert registry.known_serial(chain) is None
    with pytest.raises(CertificateUnknown):
        registry.principal(chain)
    assert registry.known_serial(b"no certificate") is None


async def test_a_void_or_expired_certificate_is_known_and_may_not_be_used(place: Place) -> None:
    chain = await place.joined("ann")
    serial = read_certificate(chain).serial
    await place.registry.revoke(ROOT, "ann", "lost")
    assert place.registry.known_serial(chain) == serial
    with pytest.raises(CertificateRevoked):
        place.registry.principal(chain)


async def test_a_certificate_from_before_the_membership_is_unknown(place: Place) -> None:
    chain = await place.joined("ann")
    registry = place.registry
    member = registry._members[ClientId("ann")]
    registry._members[member.name] = replace(member, created_s=place.now_s + 1)
    with pytest.raises(CertificateUnknown):
        registry.principal(chain)
    registry._members[member.name] = replace(member, created_s=place.now_s)
    assert registry.principal(chain).name == "ann"


async def test_a_token_is_known_until_its_invite_is_withdrawn(place: Place) -> None:
    token = await place.invited("ann")
    assert place.registry.knows_token(token)
    assert not place.registry.knows_token("another")
    await place.registry.join("ann", token, request())
    assert place.registry.knows_token(token), "a used token is one that nobody guesses"
    withdrawn = await place.invited("ben")
    await place.invited("ben")
    assert not place.registry.knows_token(withdrawn)


async def test_open_invites_are_those_that_may_still_be_used_sorted_by_name(place: Place) -> None:
    await place.invited("cat")
    used = await place.invited("ann")
    await place.invited("ben", ttl_s=10.0)
    await place.registry.join("ann", used, request())
    assert [invite.name for invite in place.registry.open_invites()] == ["ben", "cat"]
    place.now_s += 9.999
    assert len(place.registry.open_invites()) == 2
    place.now_s += 0.001
    assert [invite.name for invite in place.registry.open_invites()] == ["cat"]


async def test_the_newest_certificate_is_the_one_that_is_not_void(place: Place) -> None:
    chain = await place.joined("ann")
    first = place.registry.principal(chain)
    assert place.registry.newest_certificate(ClientId("ben")) is None
    place.now_s += 1
    second = read_certificate(await place.registry.renew(first, request()))
    newest = place.registry.newest_certificate(ClientId("ann"))
    assert newest is not None
    assert newest.serial == second.serial
    place.registry._certificates[second.serial] = replace(newest, revoked_s=place.now_s)
    older = place.registry.newest_certificate(ClientId("ann"))
    assert older is not None
    assert older.serial == first.serial
    void = {serial: replace(issued, revoked_s=1.0) for serial, issued in place.registry._certificates.items()}
    place.registry._certificates |= void
    last = place.registry.newest_certificate(ClientId("ann"))
    assert last is not None
    assert last.serial == second.serial


async def test_a_members_state(place: Place) -> None:
    chain = await place.joined("ann", needs_approval=True)
    registry = place.registry

    def state() -> str:
        return registry.state_of(registry._members[ClientId("ann")])

    assert state() is MemberState.AWAITING_APPROVAL
    await registry.approve(ROOT, "ann")
    assert state() is MemberState.ACTIVE
    end_s = read_certificate(chain).not_after_s
    place.now_s = end_s - 0.001
    assert state() is MemberState.ACTIVE
    place.now_s = end_s
    assert state() is MemberState.EXPIRED
    without = replace(registry._members[ClientId("ann")], name=ClientId("ben"))
    assert registry.state_of(without) is MemberState.EXPIRED
    await registry.revoke(ROOT, "ann", "")
    assert state() is MemberState.REVOKED


async def test_revoked_members_are_listed_and_all_members_sorted(place: Place) -> None:
    for name in ("cat", "ann", "ben"):
        await place.joined(name)
    await place.registry.revoke(ROOT, "cat", "")
    await place.registry.revoke(ROOT, "ben", "")
    assert place.registry.revoked() == ("ben", "cat")
    assert [member.name for member in place.registry.members()] == ["ann", "ben", "cat"]
    again = place.opened()
    await again.start()
    assert again.members() == place.registry.members()
    assert again._certificates == place.registry._certificates
    assert again._serials == place.registry._serials
    assert again._invites == place.registry._invites


# Invites and the entries about them


async def test_an_invite_and_its_entry_have_the_facts_of_the_order(place: Place) -> None:
    order = InviteOrder("ann", CLIENT, "G", GroupRole.HELD_OUT, 60.0, True, (), 7)
    invite, token = await place.registry.invite(ROOT, order)
    assert (invite.name, invite.role, invite.group, invite.group_role) == ("ann", CLIENT, "G", GroupRole.HELD_OUT)
    assert (invite.needs_approval, invite.max_examples, invite.runs) == (True, 7, ())
    assert (invite.created_s, invite.expires_s) == (place.now_s, place.now_s + 60)
    assert invite.token_sha256 == token_hash(token)
    facts = {
        "group": "G",
        "group_role": "held_out",
        "max_examples": 7,
        "needs_approval": True,
        "role": "client",
        "runs": "",
    }
    assert place.newest_entry() == ("root", "CreateInvite", "members/ann", facts)
    invite, _ = await place.registry.invite(ROOT, InviteOrder("eve", OBSERVER, runs=("r", "q", "r")))
    assert (invite.runs, invite.group, invite.group_role) == (("r", "q"), "", GroupRole.TRAIN)
    facts = {
        "group": "",
        "group_role": "",
        "max_examples": 0,
        "needs_approval": False,
        "role": "observer",
        "runs": "r q",
    }
    assert place.newest_entry() == ("root", "CreateInvite", "members/eve", facts)
    invite, _ = await place.registry.invite(ROOT, InviteOrder("ben", CLIENT))
    assert (invite.group, invite.max_examples, invite.group_role) == ("ben", DEFAULT_MAX_EXAMPLES, GroupRole.TRAIN)
    assert place.newest_entry()[3]["group_role"] == "train"


ORDERS: list[tuple[InviteOrder, str | None]] = [
    (InviteOrder("ann", CLIENT, ttl_s=MAX_TTL_S), None),
    (InviteOrder("ann", CLIENT, ttl_s=MAX_TTL_S + 0.001), "ttl"),
    (InviteOrder("ann", CLIENT, ttl_s=0.001), None),
    (InviteOrder("ann", CLIENT, ttl_s=0.0), "ttl"),
    (InviteOrder("", CLIENT), "name"),
    (InviteOrder("a b", CLIENT), "name"),
    (InviteOrder("ann", CLIENT, "x" * 1000), "group"),
    (InviteOrder("ann", OBSERVER, "G", runs=("r",)), "group"),
    (InviteOrder("ann", OBSERVER, group_role=GroupRole.HELD_OUT, runs=("r",)), "group"),
    (InviteOrder("ann", OBSERVER, group_role=GroupRole.TRAIN, runs=("r",)), None),
    (InviteOrder("ann", ADMIN, "G"), "group"),
    (InviteOrder("ann", CLIENT, runs=("r",)), "runs"),
    (InviteOrder("ann", ADMIN, runs=("r",)), "runs"),
    (InviteOrder("ann", OBSERVER), "runs"),
    (InviteOrder("ann", OBSERVER, runs=tuple(f"r{n}" for n in range(MAX_RUNS))), None),
    (InviteOrder("ann", OBSERVER, runs=tuple(f"r{n}" for n in range(MAX_RUNS + 1))), "runs"),
    (InviteOrder("ann", OBSERVER, runs=(ALL_RUNS, "r")), None),
    (InviteOrder("ann", OBSERVER, runs=("r", "a b")), "runs"),
    (InviteOrder("ann", CLIENT, max_examples=1), None),
    (InviteOrder("ann", CLIENT, max_examples=-1), "max_examples"),
    (InviteOrder("ann", CLIENT, max_examples=MAX_EXAMPLES), None),
    (InviteOrder("ann", CLIENT, max_examples=MAX_EXAMPLES + 1), "max_examples"),
    (InviteOrder("ann", OBSERVER, runs=("r",), max_examples=1), "max_examples"),
    (InviteOrder("ann", ADMIN), None),
]


@pytest.mark.parametrize(("order", "field"), ORDERS)
async def test_an_order_at_a_limit_is_allowed_and_one_beyond_it_is_refused(
    place: Place, order: InviteOrder, field: str | None
) -> None:
    assert (MAX_TTL_S, MAX_RUNS, MAX_EXAMPLES) == (86_400.0, 100, 10**9)
    if field is None:
        await place.registry.invite(ROOT, order)
    else:
        with pytest.raises(InvalidArgument) as refused:
            await place.registry.invite(ROOT, order)
        assert refused.value.field == field
        assert place.tables.invites == {}


async def test_a_new_invite_withdraws_the_open_ones_of_its_name_only(place: Place) -> None:
    first, other = await place.invited("ann"), await place.invited("ben")
    second = await place.invited("ann")
    with pytest.raises(InviteUnknown):
        await place.registry.join("ann", first, request())
    await place.registry.join("ben", other, request())
    await place.registry.join("ann", second, request())


async def test_two_invites_of_one_name_at_once_leave_one_open(place: Place) -> None:
    order = InviteOrder("ann", CLIENT)
    await asyncio.gather(*(place.registry.invite(ROOT, order) for _ in range(2)))
    assert len(place.registry.open_invites()) == 1


async def test_an_invite_ends_with_its_time(place: Place) -> None:
    token = await place.invited("ann", ttl_s=10.0)
    place.now_s += 10
    with pytest.raises(InviteExpired):
        await place.registry.join("ann", token, request())
    token = await place.invited("ann", ttl_s=10.0)
    place.now_s += 9.999
    await place.registry.join("ann", token, request())


# Joining


async def test_a_member_has_what_its_invite_says_and_an_entry(place: Place) -> None:
    token = await place.invited("ann", group="G", group_role=GroupRole.HELD_OUT, needs_approval=True, max_examples=7)
    key = new_key()
    member, chain = await place.registry.join("ann", token, make_request(key, "x"))
    assert (member.name, member.role, member.group, member.group_role) == ("ann", CLIENT, "G", GroupRole.HELD_OUT)
    assert (member.approved, member.created_s, member.max_examples) == (False, place.now_s, 7)
    facts = {"key_sha256": fingerprint(key.public_key()), "role": "client", "voided": 0}
    assert place.newest_entry() == ("ann", "Join", "members/ann", facts)
    issued = place.registry._certificates[read_certificate(chain).serial]
    assert (issued.member, issued.issued_s, issued.predecessor) == ("ann", place.now_s, "")


async def test_a_repeated_join_gets_the_chain_again_while_it_is_good(place: Place) -> None:
    token, asked = await place.invited("ann"), request()
    _, chain = await place.registry.join("ann", token, asked)
    entries = len(place.tables.audit_log)
    assert (await place.registry.join("ann", token, asked))[1] == chain
    with pytest.raises(InviteUsed):
        await place.registry.join("ann", token, request())
    assert len(place.tables.audit_log) == entries
    end_s = read_certificate(chain).not_after_s
    place.now_s = end_s - 0.001
    assert (await place.registry.join("ann", token, asked))[1] == chain
    place.now_s = end_s
    with pytest.raises(CertificateExpired, match=r"expired on 2027-01-15 08:16 UTC\. Check this machine's clock"):
        await place.registry.join("ann", token, asked)


async def test_a_key_is_of_one_member(place: Place) -> None:
    asked = request()
    await place.registry.join("ann", await place.invited("ann"), asked)
    with pytest.raises(CertificateInvalid, match="its key is in use"):
        await place.registry.join("ben", await place.invited("ben"), asked)
    with pytest.raises(InvalidArgument):
        await place.registry.join("a b", "token", asked)
    chain = await place.joined("cat")
    with pytest.raises(CertificateInvalid, match="its key is in use"):
        await place.registry.renew(place.registry.principal(chain), asked)


# Renewing


async def test_a_renewal_continues_the_line_and_has_an_entry(place: Place) -> None:
    chain = await place.joined("ann")
    first, key = place.registry.principal(chain), new_key()
    place.now_s += 5
    renewed = await place.registry.renew(first, make_request(key, "x"))
    facts = read_certificate(renewed)
    issued = place.registry._certificates[facts.serial]
    assert (issued.predecessor, issued.issued_s) == (first.serial, place.now_s)
    entry = {"key_sha256": fingerprint(key.public_key()), "new_serial": facts.serial, "voided": 0}
    assert place.newest_entry() == ("ann", "Renew", "members/ann", entry)
    entries = len(place.tables.audit_log)
    assert await place.registry.renew(first, make_request(key, "x")) == renewed
    assert len(place.tables.audit_log) == entries
    again = await place.registry.renew(first, request())
    assert place.newest_entry()[3]["voided"] == 1
    with pytest.raises(CertificateRevoked, match="a later renewal"):
        place.registry.principal(renewed)
    assert place.registry.principal(again).name == "ann"
    assert place.registry.principal(chain).name == "ann", "the renewed certificate lasts to its end"


async def test_a_line_has_five_living_certificates_at_most(place: Place) -> None:
    assert MAX_LIVE_CERTIFICATES == 5
    newest = place.registry.principal(await place.joined("ann"))
    for _ in range(4):
        newest = place.registry.principal(await place.registry.renew(newest, request()))
    with pytest.raises(OverLimit) as refused:
        await place.registry.renew(newest, request())
    assert (refused.value.got, refused.value.limit) == (6, 5)
    place.now_s += LIFE_S - 0.001
    with pytest.raises(OverLimit):
        await place.registry.renew(newest, request())


async def test_expired_and_void_certificates_do_not_count(place: Place) -> None:
    first = place.registry.principal(await place.joined("ann"))
    for _ in range(10):  # each one takes the place of the one before
        await place.registry.renew(first, request())
    newest = first
    for _ in range(4):
        newest = place.registry.principal(await place.registry.renew(newest, request()))
    place.now_s += LIFE_S
    await place.registry.renew(newest, request())


# Approving and revoking


async def test_an_approval_has_one_entry(place: Place) -> None:
    chain = await place.joined("ann", needs_approval=True)
    assert (await place.registry.approve(ROOT, "ann")).approved
    entry = place.newest_entry()
    assert entry[:3] == ("root", "ApproveMember", "members/ann")
    assert read_certificate(chain).key_sha256 in entry[3].values()
    entries = len(place.tables.audit_log)
    await place.registry.approve(ROOT, "ann")
    assert len(place.tables.audit_log) == entries
    with pytest.raises(NotFound):
        await place.registry.approve(ROOT, "ben")


async def test_a_revocation_voids_certificates_and_invites_and_has_one_entry(place: Place) -> None:
    chain = await place.joined("ann")
    await place.registry.renew(place.registry.principal(chain), request())
    member = await place.registry.revoke(ROOT, "ann", "lost")
    assert member is not None
    assert member.revoked_s == place.now_s
    facts = {"certificates": 2, "reason": "lost"}
    assert place.newest_entry() == ("root", "RevokeMember", "members/ann", facts)
    entries = len(place.tables.audit_log)
    assert await place.registry.revoke(ROOT, "ann", "again") == member
    assert len(place.tables.audit_log) == entries
    token = await place.invited("ann")
    assert (await place.registry.revoke(ROOT, "ann", "")) is not None
    with pytest.raises(InviteUnknown):
        await place.registry.join("ann", token, request())
    with pytest.raises(NotFound):
        await place.registry.revoke(ROOT, "ben", "")
    await place.invited("ben")
    assert await place.registry.revoke(ROOT, "ben", "") is None
    assert place.registry.open_invites() == ()


async def test_one_administrator_is_always_left(place: Place) -> None:
    for name in ("one", "two"):
        await place.joined(name, ADMIN)
    await place.joined("ann")
    await place.registry.revoke(ROOT, "one", "")
    with pytest.raises(LastAdmin):
        await place.registry.revoke(ROOT, "two", "")
    await place.registry.revoke(ROOT, "ann", "")
    await place.joined("three", ADMIN, needs_approval=True)
    with pytest.raises(LastAdmin):
        await place.registry.revoke(ROOT, "two", "")
    await place.registry.approve(ROOT, "three")
    await place.registry.revoke(ROOT, "two", "")
    await place.invited("two")
    await place.registry.revoke(ROOT, "two", "")  # it is no administrator any more; only its invite goes


async def test_an_administrator_made_here_has_an_entry_and_voids_what_came_before(place: Place) -> None:
    key = new_key()
    chain = await place.registry.make_admin(ClientId("root"), key.public_key())
    facts = read_certificate(chain)
    entry = place.newest_entry()
    assert entry[1:3] == ("MakeAdmin", "members/root")
    assert entry[3] == {"key_sha256": fingerprint(key.public_key()), "serial": facts.serial}
    principal = place.registry.principal(chain)
    assert (principal.role, principal.group) == (ADMIN, "")
    with pytest.raises(MemberExists):
        await place.registry.make_admin(ClientId("root"), new_key().public_key())
    place.now_s += LIFE_S
    second = await place.registry.make_admin(ClientId("root"), new_key().public_key())
    assert place.registry.principal(second).role is ADMIN
    assert place.registry._certificates[facts.serial].revoked_s == place.now_s


async def test_a_revocation_says_whether_the_membership_ended_or_a_renewal_took_the_place(place: Place) -> None:
    chain = await place.joined("ann")
    first = place.registry.principal(chain)
    old = await place.registry.renew(first, request())
    await place.registry.renew(first, request())
    with pytest.raises(CertificateRevoked) as replaced:
        place.registry.principal(old)
    assert "somebody has the key" in str(replaced.value)
    await place.registry.revoke(ROOT, "ann", "")
    with pytest.raises(CertificateRevoked) as ended:
        place.registry.principal(chain)
    assert "somebody has the key" not in str(ended.value)
    place.now_s += 1
    await place.joined("ann")
    with pytest.raises(CertificateRevoked) as before:
        place.registry.principal(chain)
    assert "somebody has the key" not in str(before.value)


async def test_a_certificate_that_was_voided_meanwhile_is_not_renewed(place: Place) -> None:
    principal = place.registry.principal(await place.joined("ann"))
    await place.registry.revoke(ROOT, "ann", "")
    with pytest.raises(CertificateRevoked):
        await place.registry.renew(principal, request())


# Calls at the same time


async def test_changes_of_one_name_run_one_after_another(place: Place) -> None:
    registry, asked = place.registry, request()
    token = await place.invited("ann", needs_approval=True)
    joins = await asyncio.gather(*(registry.join("ann", token, asked) for _ in range(2)))
    assert joins[0] == joins[1]
    entries = len(place.tables.audit_log)
    await asyncio.gather(*(registry.approve(ROOT, "ann") for _ in range(2)))
    assert len(place.tables.audit_log) == entries + 1
    principal = registry.principal(joins[0][1])
    await asyncio.gather(*(registry.renew(principal, request()) for _ in range(2)))
    living = [issued for issued in registry._of(ClientId("ann")) if issued.revoked_s is None]
    assert len(living) == 2, "the second renewal has taken the place of the first one"
    entries = len(place.tables.audit_log)
    await asyncio.gather(*(registry.revoke(ROOT, "ann", "") for _ in range(2)))
    assert len(place.tables.audit_log) == entries + 1
    key = new_key().public_key()
    made = (registry.make_admin(ClientId("root"), key) for _ in range(2))
    results = await asyncio.gather(*made, return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["MemberExists", "bytes"]


# Rare cases


async def test_a_certificate_may_be_renewed_with_its_own_key(place: Place) -> None:
    key = new_key()
    _, chain = await place.registry.join("ann", await place.invited("ann"), make_request(key, "x"))
    renewed = await place.registry.renew(place.registry.principal(chain), make_request(key, "x"))
    assert read_certificate(renewed).serial != read_certificate(chain).serial


async def test_a_renewal_that_takes_the_place_of_another_is_logged(place: Place) -> None:
    first = place.registry.principal(await place.joined("ann"))
    with capture_logs() as logs:
        await place.registry.renew(first, request())
        assert [entry["event"] for entry in logs] == ["audit"]
        await place.registry.renew(first, request())
    (warning,) = [entry for entry in logs if entry["event"] == "certificate.renewed_again"]
    assert (warning["name"], len(warning["voided"])) == ("ann", 1)


async def test_a_repeated_join_after_renewals_gets_its_own_certificate(place: Place) -> None:
    token, asked = await place.invited("ann"), request()
    _, chain = await place.registry.join("ann", token, asked)
    newest = place.registry.principal(chain)
    for _ in range(3):
        newest = place.registry.principal(await place.registry.renew(newest, request()))
    assert (await place.registry.join("ann", token, asked))[1] == chain
    assert read_certificate(chain).not_after_s == place.now_s + LIFE_S
    place.now_s += LIFE_S / 2
    await place.registry.renew(newest, request())
    place.now_s += LIFE_S / 2
    with pytest.raises(CertificateExpired):
        await place.registry.join("ann", token, asked)


async def test_a_repeated_join_after_a_renewal_with_the_same_key_names_the_end_of_the_newest(place: Place) -> None:
    token, asked = await place.invited("ann"), request()
    first = place.registry.principal((await place.registry.join("ann", token, asked))[1])
    place.now_s += LIFE_S / 2
    end_s = read_certificate(await place.registry.renew(first, asked)).not_after_s
    place.now_s = end_s
    with pytest.raises(CertificateExpired) as raised:
        await place.registry.join("ann", token, asked)
    assert raised.value.expired == day(end_s) != day(end_s - LIFE_S / 2)


async def test_a_repeated_join_says_why_its_certificate_is_void(place: Place) -> None:
    token, asked = await place.invited("ann"), request()
    first = place.registry.principal((await place.registry.join("ann", token, asked))[1])
    for _ in range(MAX_LIVE_CERTIFICATES):
        await place.registry.renew(first, request())
    await place.registry.revoke(ROOT, "ann", "")
    with pytest.raises(CertificateRevoked, match="The membership of ann was revoked on 2027-01-15"):
        await place.registry.join("ann", token, asked)


async def test_an_expired_certificate_endorses_no_peer_key(place: Place) -> None:
    key, renewed, peer_key = new_key(), new_key(), new_key()
    token = await place.invited("ann")
    first = place.registry.principal((await place.registry.join("ann", token, make_request(key, "ann")))[1])
    place.now_s += LIFE_S / 2
    await place.registry.renew(first, make_request(renewed, "ann"))
    place.now_s += LIFE_S / 2
    for certificate, is_good in ((key, False), (renewed, True)):
        said = (place.registry.authority.federation, "ann", public_der(peer_key))
        claim = PeerKeyClaim(public_der(peer_key), endorsed(certificate, *said), endorsed(peer_key, *said))
        with nullcontext() if is_good else pytest.raises(InvalidArgument, match="endorsement"):
            await place.registry.roster.register(first, "G", claim)


async def test_a_member_without_a_certificate_may_be_approved(place: Place) -> None:
    await place.joined("ann", needs_approval=True)
    place.registry._serials.clear()
    assert (await place.registry.approve(ROOT, "ann")).approved
    assert "" in place.newest_entry()[3].values()


async def test_a_refusal_names_the_day_on_which_a_certificate_became_void(place: Place) -> None:
    chain = await place.joined("ann")
    await place.registry.revoke(ROOT, "ann", "")
    with pytest.raises(CertificateRevoked, match="2027-01-15"):
        place.registry.principal(chain)


async def test_the_invite_of_a_revoked_administrator_may_be_withdrawn_when_no_other_is_active(place: Place) -> None:
    for name in ("one", "two"):
        await place.joined(name, ADMIN)
    await place.registry.revoke(ROOT, "one", "")
    place.now_s += LIFE_S
    await place.invited("one", ADMIN)
    await place.registry.revoke(ROOT, "one", "")
    assert place.registry.open_invites() == ()
