"""Invites, joins, renewals and revocations on a real database: what is issued once, to whom, and what a repeat returns."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from pluralllm.common.errors.membership import (
    AwaitingApproval,
    CertificateExpired,
    CertificateInvalid,
    CertificateNotYetValid,
    CertificateRevoked,
    CertificateUnknown,
    InviteExpired,
    InviteForAnother,
    InviteUnknown,
    InviteUsed,
    LastAdmin,
    MemberExists,
    RoleForbids,
)
from pluralllm.common.errors.tree import InvalidArgument, NotFound, OverLimit, PluralError
from pluralllm.common.private_rounds.peer_keys import PeerKeyClaim, endorsed, public_der
from pluralllm.common.trust.audit_chain import check_chain
from pluralllm.common.trust.certificates import PrivateKey, make_request, new_key, read_certificate
from pluralllm.common.trust.invite import token_hash
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.members import audit_log
from pluralllm.server.members.access import ALL_RUNS, Principal
from pluralllm.server.members.audit_log import AuditLog
from pluralllm.server.members.authority import create_authority, load_authority
from pluralllm.server.members.invite_order import InviteOrder
from pluralllm.server.members.possible_clients import possible_clients
from pluralllm.server.members.registry import MAX_LIVE_CERTIFICATES, Registry
from pluralllm.server.storage.membership import MembershipChange, MemberState
from pluralllm.server.storage.sql_membership import SqlMembership
from pluralllm.server.storage.sql_store import open_store

CLIENT, OBSERVER, ADMIN = MemberRole.CLIENT, MemberRole.OBSERVER, MemberRole.ADMIN
DAY_S = 86_400.0
ROOT = Principal(ClientId("root"), ADMIN, "1f")


class Place:
    """A registry over a database on disk, with a clock that a test sets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now_s = 1_800_000_000.0

    async def open(self) -> Registry:
        if not (self.folder / "authority").exists():
            create_authority(self.folder / "authority", "fed", ["127.0.0.1"], None, self.now_s)
        self.store = await open_store(f"sqlite+aiosqlite:///{self.folder / 'test.sqlite3'}")
        self.membership = SqlMembership(self.store)
        audit = AuditLog(self.membership, lambda: self.now_s)
        await audit.start()
        authority = load_authority(self.folder / "authority")
        registry = Registry(self.membership, audit, authority, 30 * DAY_S, lambda: self.now_s)
        await registry.start()
        return registry


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    found = Place(tmp_path)
    yield found
    await found.store.close()


@pytest.fixture
async def registry(place: Place) -> Registry:
    return await place.open()


def request() -> bytes:
    return make_request(new_key(), "anything: the issuer decides the name")


async def joined(registry: Registry, name: str, role: MemberRole = CLIENT) -> Principal:
    _, token = await registry.invite(ROOT, InviteOrder(name, role, runs=(ALL_RUNS,) if role is OBSERVER else ()))
    _, chain = await registry.join(name, token, request())
    return registry.principal(chain)


async def actions(registry: Registry) -> list[tuple[str, str, str]]:
    """Returns the entries of the audit log, after checking its chain."""
    entries = await registry.audit.entries(0, 1000)
    assert check_chain(entries) == registry.audit.head
    return [(entry.actor, entry.action, entry.result) for entry, _ in entries]


async def test_an_invite_makes_exactly_the_member_it_names(registry: Registry) -> None:
    order = InviteOrder("org-a", CLIENT, "Northmark", GroupRole.HELD_OUT)
    _, token = await registry.invite(ROOT, order)
    member, chain = await registry.join("org-a", token, request())
    assert (member.name, member.role, member.group, member.group_role) == (
        "org-a",
        CLIENT,
        "Northmark",
        GroupRole.HELD_OUT,
    )
    principal = registry.principal(chain)
    assert (principal.name, principal.role, principal.group_and_role) == (
        "org-a",
        CLIENT,
        ("Northmark", GroupRole.HELD_OUT),
    )
    assert await actions(registry) == [("root", "CreateInvite", "ACCEPTED"), ("org-a", "Join", "ACCEPTED")]


async def test_an_observer_has_the_runs_of_its_invite_also_after_a_restart(registry: Registry, place: Place) -> None:
    runs = tuple(f"r{number}" for number in range(100))
    _, token = await registry.invite(ROOT, InviteOrder("eve", OBSERVER, runs=(*runs[:99], "r0", "r99")[:100]))
    await registry.revoke(ROOT, "eve", "")
    _, token = await registry.invite(ROOT, InviteOrder("eve", OBSERVER, runs=runs))
    _, chain = await registry.join("eve", token, request())
    assert registry.principal(chain).runs == runs
    await place.store.close()
    assert (await place.open()).principal(chain).runs == runs


@pytest.mark.parametrize(("asked", "limit"), [(0, 10_000), (1, 1), (10**9, 10**9)])
async def test_a_client_has_the_limit_of_examples_of_its_invite_also_after_a_restart(
    registry: Registry, place: Place, asked: int, limit: int
) -> None:
    invite, token = await registry.invite(ROOT, InviteOrder("org-a", CLIENT, max_examples=asked))
    member, chain = await registry.join("org-a", token, request())
    assert (invite.max_examples, member.max_examples, registry.principal(chain).max_examples) == (limit,) * 3
    await place.store.close()
    assert (await place.open()).principal(chain).max_examples == limit


async def test_a_clients_group_is_its_name_where_none_is_given(registry: Registry) -> None:
    assert (await joined(registry, "org-a")).group == "org-a"
    assert (await joined(registry, "eve", OBSERVER)).group == ""


async def test_two_joins_at_once_with_one_token_give_one_certificate(registry: Registry, place: Place) -> None:
    _, token = await registry.invite(ROOT, InviteOrder("org-a", CLIENT))
    answers = await asyncio.gather(
        *(registry.join("org-a", token, request()) for _ in range(8)), return_exceptions=True
    )
    assert sum(isinstance(answer, InviteUsed) for answer in answers) == 7
    assert len((await place.membership.everyone()).certificates) == 1


async def test_two_coordinators_on_one_database_spend_an_invite_once(registry: Registry, place: Place) -> None:
    """The database decides, not the memory of a process."""
    _, token = await registry.invite(ROOT, InviteOrder("org-a", CLIENT))
    second = Registry(place.membership, registry.audit, registry.authority, 30 * DAY_S, lambda: place.now_s)
    await second.start()
    await registry.join("org-a", token, request())
    with pytest.raises(InviteUsed):
        await second.join("org-a", token, request())
    assert len((await place.membership.everyone()).certificates) == 1


async def test_a_join_repeated_with_the_same_key_gets_the_same_certificate(registry: Registry, place: Place) -> None:
    _, token = await registry.invite(ROOT, InviteOrder("org-a", CLIENT))
    same = request()
    _, first = await registry.join("org-a", token, same)
    assert (await registry.join("org-a", token, same))[1] == first
    await place.store.close()
    again = await place.open()
    assert (await again.join("org-a", token, same))[1] == first, "also after a restart"
    await again.revoke(ROOT, "org-a", "")
    with pytest.raises(CertificateRevoked):
        await again.join("org-a", token, same)


async def test_every_wrong_token_has_its_own_reason_and_changes_nothing(registry: Registry, place: Place) -> None:
    _, used = await registry.invite(ROOT, InviteOrder("used", CLIENT))
    await registry.join("used", used, request())
    _, withdrawn = await registry.invite(ROOT, InviteOrder("open", CLIENT))
    _, open_token = await registry.invite(ROOT, InviteOrder("open", CLIENT))
    before = await place.membership.everyone()
    wrong: list[tuple[str, str, bytes, type[PluralError]]] = [
        ("open", "no such token", request(), InviteUnknown),
        ("open", "", request(), InviteUnknown),
        ("open", token_hash(open_token), request(), InviteUnknown),
        ("open", withdrawn, request(), InviteUnknown),
        ("used", used, request(), InviteUsed),
        ("another", open_token, request(), InviteForAnother),
        ("No Id", open_token, request(), InvalidArgument),
        ("open", open_token, b"no request", CertificateInvalid),
    ]
    for name, token, csr, reason in wrong:
        with pytest.raises(reason):
            await registry.join(name, token, csr)
    place.now_s += DAY_S
    with pytest.raises(InviteExpired):
        await registry.join("open", open_token, request())
    assert await place.membership.everyone() == before


async def test_a_token_is_kept_nowhere(registry: Registry, place: Place) -> None:
    _, token = await registry.invite(ROOT, InviteOrder("org-a", CLIENT))
    await registry.join("org-a", token, request())
    await place.store.close()
    assert token.encode() not in (place.folder / "test.sqlite3").read_bytes()
    await place.open()


async def test_a_key_belongs_to_one_member(registry: Registry) -> None:
    csr = request()
    tokens = [(await registry.invite(ROOT, InviteOrder(name, CLIENT)))[1] for name in ("org-a", "org-b")]
    await registry.join("org-a", tokens[0], csr)
    with pytest.raises(CertificateInvalid, match="in use"):
        await registry.join("org-b", tokens[1], csr)


@pytest.mark.parametrize(
    ("order", "field"),
    [
        (InviteOrder("Org A", CLIENT), "name"),
        (InviteOrder("org-a", CLIENT, ttl_s=0), "ttl"),
        (InviteOrder("org-a", CLIENT, ttl_s=24 * 3600 + 1), "ttl"),
        (InviteOrder("org-a", CLIENT, ttl_s=float("nan")), "ttl"),
        (InviteOrder("org-a", CLIENT, group="x" * 201), "group"),
        (InviteOrder("org-a", OBSERVER, group="G", runs=(ALL_RUNS,)), "group"),
        (InviteOrder("org-a", ADMIN, group_role=GroupRole.HELD_OUT), "group"),
        (InviteOrder("org-a", OBSERVER), "runs: must name the runs"),
        (InviteOrder("org-a", OBSERVER, runs=("no run",)), "runs"),
        (InviteOrder("org-a", OBSERVER, runs=("",)), "runs"),
        (InviteOrder("org-a", OBSERVER, runs=tuple(f"r{number}" for number in range(101))), "runs"),
        (InviteOrder("org-a", CLIENT, runs=("r",)), "runs: are for observers"),
        (InviteOrder("org-a", ADMIN, runs=(ALL_RUNS,)), "runs: are for observers"),
        (InviteOrder("org-a", CLIENT, max_examples=-1), "max_examples"),
        (InviteOrder("org-a", CLIENT, max_examples=10**9 + 1), "max_examples"),
        (InviteOrder("org-a", ADMIN, max_examples=5), "max_examples: is for clients"),
        (InviteOrder("org-a", OBSERVER, runs=(ALL_RUNS,), max_examples=5), "max_examples: is for clients"),
    ],
)
async def test_an_order_out_of_range_is_refused(registry: Registry, order: InviteOrder, field: str) -> None:
    with pytest.raises(InvalidArgument, match=field):
        await registry.invite(ROOT, order)
    assert await actions(registry) == []


async def test_a_taken_name_is_refused_in_the_same_words_by_an_invite_and_on_the_coordinators_machine(
    registry: Registry,
) -> None:
    _, token = await registry.invite(ROOT, InviteOrder("org-a", CLIENT, needs_approval=True))
    await registry.join("org-a", token, request())
    with pytest.raises(MemberExists) as from_invite:
        await registry.invite(ROOT, InviteOrder("org-a", CLIENT))
    with pytest.raises(MemberExists) as from_machine:
        await registry.make_admin(ClientId("org-a"), new_key().public_key())
    assert str(from_invite.value) == str(from_machine.value)
    assert from_machine.value.state == "awaiting approval"


async def test_a_name_that_is_taken_is_not_invited_until_it_is_revoked_or_expired(
    registry: Registry, place: Place
) -> None:
    old = await joined(registry, "org-a")
    with pytest.raises(MemberExists):
        await registry.invite(ROOT, InviteOrder("org-a", CLIENT))
    await registry.revoke(ROOT, "org-a", "")
    new = await joined(registry, "org-a")
    assert new.serial != old.serial
    place.now_s += 31 * DAY_S
    [member] = registry.members()
    assert registry.state_of(member) is MemberState.EXPIRED
    await joined(registry, "org-a")


async def test_old_certificates_stay_revoked_when_the_member_comes_back(registry: Registry) -> None:
    _, token = await registry.invite(ROOT, InviteOrder("org-a", CLIENT))
    _, old = await registry.join("org-a", token, request())
    await registry.revoke(ROOT, "org-a", "laptop stolen")
    await joined(registry, "org-a")
    with pytest.raises(CertificateRevoked):
        registry.principal(old)


async def test_a_renewal_gives_the_next_certificate_and_leaves_the_old_one_to_its_end(
    registry: Registry, place: Place
) -> None:
    _, token = await registry.invite(ROOT, InviteOrder("org-a", CLIENT))
    _, first = await registry.join("org-a", token, request())
    place.now_s += 20 * DAY_S
    csr = request()
    second = await registry.renew(registry.principal(first), csr)
    assert await registry.renew(registry.principal(first), csr) == second, "the same key, the same answer"
    assert {registry.principal(chain).name for chain in (first, second)} == {"org-a"}
    place.now_s += 11 * DAY_S
    with pytest.raises(CertificateExpired):
        registry.principal(first)
    assert read_certificate(second).serial == registry.principal(second).serial
    place.now_s -= 40 * DAY_S
    with pytest.raises(CertificateNotYetValid):
        registry.principal(second)


async def test_a_member_cannot_pile_up_certificates(registry: Registry) -> None:
    member = await joined(registry, "org-a")
    for _ in range(MAX_LIVE_CERTIFICATES - 1):  # each renewal renews the one before
        member = registry.principal(await registry.renew(member, request()))
    with pytest.raises(OverLimit):
        await registry.renew(member, request())


async def test_the_newest_renewal_of_a_certificate_voids_the_one_before_with_all_that_came_from_it(
    registry: Registry, place: Place
) -> None:
    _, token = await registry.invite(ROOT, InviteOrder("org-a", CLIENT))
    _, first = await registry.join("org-a", token, request())
    owner = registry.principal(first)
    line = [await registry.renew(owner, request())]
    for _ in range(MAX_LIVE_CERTIFICATES - 2):
        line.append(await registry.renew(registry.principal(line[-1]), request()))
    csr = request()
    place.now_s += 1
    newest = await registry.renew(owner, csr)
    assert await registry.renew(owner, csr) == newest
    for void in line:
        with pytest.raises(CertificateRevoked, match="a later renewal of the same certificate took its place"):
            registry.principal(void)
        with pytest.raises(CertificateRevoked):
            await registry.renew(Principal(owner.name, CLIENT, read_certificate(void).serial), request())
    assert {registry.principal(chain).name for chain in (first, newest)} == {"org-a"}
    shown = registry.newest_certificate(owner.name)
    assert shown is not None
    assert shown.chain_pem == newest
    await place.store.close()
    again = await place.open()
    with pytest.raises(CertificateRevoked):
        again.principal(line[0])
    third = await again.renew(again.principal(newest), request())
    await again.renew(again.principal(first), request())
    for void in (newest, third):
        with pytest.raises(CertificateRevoked):
            again.principal(void)
    facts = [entry.facts_json for entry, _ in await again.audit.entries(0, 100) if entry.action == "Renew"]
    assert [json.loads(text)["voided"] for text in facts] == [0] * 4 + [4, 0, 2]


async def test_a_new_membership_voids_every_certificate_of_the_name(registry: Registry, place: Place) -> None:
    """The last certificate of the old membership has expired, an earlier one of a longer life has not."""
    long = Registry(place.membership, registry.audit, registry.authority, 90 * DAY_S, lambda: place.now_s)
    await long.start()
    _, token = await long.invite(ROOT, InviteOrder("org-a", CLIENT))
    _, old = await long.join("org-a", token, request())
    await registry.start()
    place.now_s += 1
    newest = await registry.renew(registry.principal(old), request())
    place.now_s += 31 * DAY_S
    assert registry.principal(old).name == "org-a"
    _, token = await registry.invite(ROOT, InviteOrder("org-a", ADMIN))
    before = len(await registry.audit.entries(0, 100))
    _, chain = await registry.join("org-a", token, request())
    assert len(await registry.audit.entries(0, 100)) == before + 1, "one transaction"
    assert registry.principal(chain).role is ADMIN
    await place.store.close()
    again = await place.open()
    for void in (old, newest):
        with pytest.raises(CertificateRevoked, match="The membership of org-a was revoked"):
            again.principal(void)


async def test_an_administrator_made_on_the_coordinators_machine_voids_the_certificates_of_the_name(
    registry: Registry, place: Place
) -> None:
    long = Registry(place.membership, registry.audit, registry.authority, 90 * DAY_S, lambda: place.now_s)
    await long.start()
    _, token = await long.invite(ROOT, InviteOrder("org-a", CLIENT))
    _, old = await long.join("org-a", token, request())
    await registry.start()
    place.now_s += 1
    await registry.renew(registry.principal(old), request())
    place.now_s += 31 * DAY_S
    chain = await registry.make_admin(ClientId("org-a"), new_key().public_key())
    assert registry.principal(chain).role is ADMIN
    with pytest.raises(CertificateRevoked):
        registry.principal(old)


@pytest.mark.parametrize("changes", [{"role": ADMIN}, {"role": OBSERVER}, {"created_s": 1_800_000_001.0}])
async def test_a_certificate_of_another_role_or_of_an_earlier_membership_is_refused_in_states_of_older_releases(
    registry: Registry, place: Place, changes: dict[str, Any]
) -> None:
    _, token = await registry.invite(ROOT, InviteOrder("org-a", CLIENT))
    member, chain = await registry.join("org-a", token, request())
    other = replace(member, **changes)
    await registry.audit.change(MembershipChange(registry.audit.new_entry(ROOT, "Old", "x"), members=(other,)))
    await place.store.close()
    with pytest.raises(CertificateUnknown):
        (await place.open()).principal(chain)


async def test_a_member_revoked_while_it_renews_gets_nothing(registry: Registry, place: Place) -> None:
    member = await joined(registry, "org-a")
    await registry.revoke(ROOT, "org-a", "")
    with pytest.raises(CertificateRevoked):
        await registry.renew(member, request())
    assert len((await place.membership.everyone()).certificates) == 1


async def test_revocation_is_durable_and_takes_open_invites_with_it(registry: Registry, place: Place) -> None:
    _, token = await registry.invite(ROOT, InviteOrder("org-a", CLIENT))
    assert await registry.revoke(ROOT, "org-a", "") is None, "there was an invite only"
    with pytest.raises(InviteUnknown):
        await registry.join("org-a", token, request())
    _, token = await registry.invite(ROOT, InviteOrder("org-b", CLIENT))
    _, chain = await registry.join("org-b", token, request())
    await registry.revoke(ROOT, "org-b", "left")
    assert await registry.revoke(ROOT, "org-b", "again") is not None, "repeatable"
    await place.store.close()
    again = await place.open()
    with pytest.raises(CertificateRevoked):
        again.principal(chain)
    assert again.revoked() == ("org-b",)
    with pytest.raises(NotFound):
        await again.revoke(ROOT, "nobody", "")


async def test_the_last_administrator_stays(registry: Registry) -> None:
    await joined(registry, "boss", ADMIN)
    with pytest.raises(LastAdmin):
        await registry.revoke(ROOT, "boss", "")
    await joined(registry, "other", ADMIN)
    await registry.revoke(ROOT, "boss", "")
    with pytest.raises(LastAdmin):
        await registry.revoke(ROOT, "other", "")


async def test_a_member_that_needs_approval_waits_for_it(registry: Registry) -> None:
    _, token = await registry.invite(ROOT, InviteOrder("org-a", CLIENT, needs_approval=True))
    _, chain = await registry.join("org-a", token, request())
    with pytest.raises(AwaitingApproval):
        registry.principal(chain)
    assert registry.state_of(registry.members()[0]) is MemberState.AWAITING_APPROVAL
    await registry.approve(ROOT, "org-a")
    await registry.approve(ROOT, "org-a")
    assert registry.principal(chain).name == "org-a"
    assert [action for _, action, _ in await actions(registry)].count("ApproveMember") == 1
    with pytest.raises(NotFound):
        await registry.approve(ROOT, "nobody")


async def test_refusals_are_audited_once_an_hour_each(registry: Registry, place: Place) -> None:
    error = InviteUsed(name="org-a")
    for _ in range(5):
        await registry.audit.refused(None, "Join", "members/org-a", error)
    await registry.audit.refused(None, "Join", "members/org-b", error)
    assert len(await actions(registry)) == 2
    place.now_s += 3601
    await registry.audit.refused(None, "Join", "members/org-a", error)
    assert await actions(registry) == [("", "Join", "INVITE_USED")] * 3


async def test_a_refusal_that_is_repeated_fills_no_log(
    registry: Registry, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_log, "MAX_REFUSALS_REMEMBERED", 3)
    eve, error = await joined(registry, "eve", OBSERVER), RoleForbids(name="eve", role="observer", rpc="x", allowed="")
    with capture_logs() as logs:
        for _ in range(150):
            place.now_s += 1
            await registry.audit.refused(eve, "CreateRun", "runs/r", error)
        for number in range(150):
            place.now_s += 1
            await registry.audit.refused(eve, "CreateRun", f"runs/r{number}", error)
    lines = [(line["event"], line.get("object")) for line in logs if line["event"] != "audit"]
    assert lines == [
        ("audit.refused", "runs/r"),
        ("audit.refused", "runs/r"),
        ("audit.refused", "runs/r"),
        ("audit.refused", "runs/r0"),
        ("audit.refused", "runs/r1"),
        ("audit.refusals_not_recorded", "runs/r2"),
        ("audit.refusals_not_recorded", "runs/r62"),
        ("audit.refusals_not_recorded", "runs/r122"),
    ]
    assert len(await actions(registry)) == 5


async def test_one_that_fills_its_list_of_refusals_hides_nobody_elses(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_log, "MAX_REFUSALS_REMEMBERED", 3)
    eve = await joined(registry, "eve", OBSERVER)
    for number in range(10):
        error = RoleForbids(name="eve", role=OBSERVER, rpc="CreateRun", allowed="admin")
        await registry.audit.refused(eve, "CreateRun", f"runs/{number}", error)
    await registry.audit.refused(None, "Join", "members/org-a", InviteUsed(name="org-a"))
    assert [entry[2] for entry in await actions(registry)][2:] == ["ROLE_FORBIDS"] * 3 + ["INVITE_USED"]


async def test_the_log_goes_on_from_its_head_after_a_restart(registry: Registry, place: Place) -> None:
    await joined(registry, "org-a")
    await place.store.close()
    again = await place.open()
    assert again.audit.head == registry.audit.head
    await joined(again, "org-b")
    assert len(await actions(again)) == 4


async def test_a_change_whose_invite_is_spent_writes_nothing(registry: Registry, place: Place) -> None:
    before = await place.membership.everyone(), await place.membership.audit_head()
    with pytest.raises(InviteUsed):
        await place.membership.change_membership(
            MembershipChange(registry.audit.new_entry(ROOT, "Join", "x"), spends="0" * 64)
        )
    assert (await place.membership.everyone(), await place.membership.audit_head()) == before


# Peer keys


def peer_claim(registry: Registry, name: str, key: PrivateKey, certificate: PrivateKey) -> PeerKeyClaim:
    said = (registry.authority.federation, name, public_der(key))
    return PeerKeyClaim(public_der(key), endorsed(certificate, *said), endorsed(key, *said))


async def with_key(registry: Registry, name: str) -> tuple[Principal, PrivateKey]:
    """Returns a new member that has joined, and the key of its certificate."""
    key = new_key()
    _, token = await registry.invite(ROOT, InviteOrder(name, CLIENT))
    _, chain = await registry.join(name, token, make_request(key, name))
    return registry.principal(chain), key


async def test_a_peer_key_is_endorsed_by_the_certificate_before_or_after_a_renewal(registry: Registry) -> None:
    ann, first = await with_key(registry, "ann")
    _, other = await with_key(registry, "ben")
    peer_key, renewed = new_key(), new_key()
    with pytest.raises(InvalidArgument, match="endorsement"):
        await registry.roster.register(ann, "G", peer_claim(registry, "ann", peer_key, other))
    await registry.roster.register(ann, "G", peer_claim(registry, "ann", peer_key, first))
    await registry.renew(ann, make_request(renewed, "ann"))
    for certificate in (first, renewed):
        await registry.roster.register(ann, "G", peer_claim(registry, "ann", peer_key, certificate))
    assert registry.roster.peer_key(ann.name) == public_der(peer_key)


async def test_a_revocation_removes_the_peer_key_and_a_new_membership_may_have_another(
    registry: Registry, place: Place
) -> None:
    ann, certificate = await with_key(registry, "ann")
    await registry.roster.register(ann, "G", peer_claim(registry, "ann", new_key(), certificate))
    await registry.revoke(ROOT, "ann", "gone")
    assert registry.roster.peer_key(ann.name) is None
    again, later = await with_key(registry, "ann")
    with pytest.raises(InvalidArgument, match="endorsement"):  # a void certificate endorses nothing
        await registry.roster.register(again, "G", peer_claim(registry, "ann", new_key(), certificate))
    await registry.roster.register(again, "G", peer_claim(registry, "ann", new_key(), later))
    changes = ["added", "removed", "replaced"]
    assert [entry.change for entry in registry.roster.entries(0, 9)] == changes
    assert [row.entry.change for row in await place.membership.roster_rows(0, 9)] == changes


async def test_a_member_that_is_revoked_while_it_states_its_peer_key_is_not_in_the_roster(registry: Registry) -> None:
    ann, certificate = await with_key(registry, "ann")
    claim = peer_claim(registry, "ann", new_key(), certificate)
    revoking = asyncio.create_task(registry.revoke(ROOT, "ann", "gone"))
    await asyncio.sleep(0)  # it holds the lock of all changes
    with pytest.raises(InvalidArgument, match="endorsement"):
        await registry.roster.register(ann, "G", claim)
    await revoking
    assert registry.roster.peer_key(ann.name) is None


async def test_a_membership_that_expired_ends_its_peer_key_when_the_next_one_begins(
    registry: Registry, place: Place
) -> None:
    ann, certificate = await with_key(registry, "ann")
    await registry.roster.register(ann, "G", peer_claim(registry, "ann", new_key(), certificate))
    place.now_s += 31 * DAY_S
    assert registry.roster.peer_key(ann.name) is not None
    await with_key(registry, "ann")
    assert registry.roster.peer_key(ann.name) is None


async def test_a_roster_in_the_database_is_found_by_the_next_process(registry: Registry, place: Place) -> None:
    ann, certificate = await with_key(registry, "ann")
    await registry.roster.register(ann, "S. Korea", peer_claim(registry, "ann", new_key(), certificate))
    await registry.roster.reset(ROOT, ann.name)
    await place.store.close()
    again = await place.open()
    assert (again.roster.head, again.roster.entries(0, 9)) == (registry.roster.head, registry.roster.entries(0, 9))
    assert again.roster.peer_key(ann.name) is None


async def test_clients_that_can_come_are_neither_revoked_nor_expired_or_hold_an_open_invite(
    place: Place, registry: Registry
) -> None:
    for name in ("ann", "ben"):
        await joined(registry, name)
    await registry.invite(ROOT, InviteOrder("cat", CLIENT))
    await registry.invite(ROOT, InviteOrder("eye", OBSERVER, runs=(ALL_RUNS,)))
    await joined(registry, "eva", OBSERVER)
    assert [one.name for one in possible_clients(registry)] == ["cat", "ann", "ben"]
    await registry.revoke(ROOT, "ben", "left")
    assert [one.name for one in possible_clients(registry)] == ["cat", "ann"]
    place.now_s += 31 * DAY_S
    assert list(possible_clients(registry)) == []
