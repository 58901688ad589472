"""The loop that renews the certificate, against every refusal of the error tree and every status code of gRPC."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography import x509
from structlog.testing import capture_logs
from support.errors_to_raise import EVERY_BARE_CODE, EVERY_LEAF

from pluralllm.client.daemon import renewal
from pluralllm.client.daemon.renewal import Renewal
from pluralllm.client.link.tasks import Renewed
from pluralllm.common.errors.membership import CertificateRevoked, CertificateUnknown
from pluralllm.common.trust.identity import Identity, Membership, next_key, save_identity, save_renewal
from pluralllm.common.words.addresses import Addresses
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.roles import MemberRole
from pluralllm.server.members.authority import Authority, create_authority

LIFE_S = 86_400.0


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return create_authority(tmp_path / "authority", "fed", ["x"], None, time.time() - LIFE_S)


def issued(authority: Authority, key: Any, begin_s: float) -> bytes:
    return authority.issue_member(key, "ann", MemberRole.CLIENT, LIFE_S, begin_s)


@pytest.fixture
def identity(tmp_path: Path, authority: Authority) -> Identity:
    """Returns an identity whose certificate is due for renewal."""
    key = next_key(tmp_path / "ann")
    chain = issued(authority, key.public_key(), time.time() - 0.9 * LIFE_S)
    member = Membership(
        federation="fed", name=ClientId("ann"), role=MemberRole.CLIENT, coordinator="x:1", enrolment="x:2"
    )
    return save_identity(tmp_path / "ann", member, authority.root_pem, key, chain)


class ScriptedTransport:
    """Refuses a renewal for each of some reasons, and grants the next one."""

    def __init__(self, authority: Authority, refusals: Sequence[Exception]) -> None:
        self._authority, self.refusals = authority, list(refusals)
        self.used: list[Identity] = []
        self.renewed = asyncio.Event()

    async def renew(self, request_der: bytes) -> Renewed:
        if self.refusals:
            raise self.refusals.pop()
        key = x509.load_der_x509_csr(request_der).public_key()
        return Renewed(issued(self._authority, key, time.time()), None)

    def use(self, identity: Identity) -> None:
        self.used.append(identity)
        self.renewed.set()


async def test_every_refused_renewal_is_tried_again(
    identity: Identity, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "SHORTEST_PAUSE_S", 0.0)
    monkeypatch.setattr(renewal, "LONGEST_PAUSE_S", 0.0)
    refusals = [OSError(28, "full"), *(case.error for case in (*EVERY_LEAF, *EVERY_BARE_CODE))]
    transport = ScriptedTransport(authority, refusals)
    keeping = asyncio.create_task(Renewal(identity, cast(Any, transport)).keep())
    await asyncio.wait_for(transport.renewed.wait(), 30)
    keeping.cancel()
    assert transport.refusals == []
    assert transport.used[0].facts.serial != identity.facts.serial


@pytest.mark.parametrize("error", [PermissionError(13, "no"), OSError(116, "stale file handle"), ValueError("x")])
async def test_a_folder_that_cannot_be_read_for_a_while_does_not_end_the_renewals(
    error: Exception, identity: Identity, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "SHORTEST_PAUSE_S", 0.0)
    monkeypatch.setattr(renewal, "LONGEST_PAUSE_S", 0.0)
    failures = [error] * 20

    def stored(used: Identity) -> Identity:
        if failures:
            raise failures.pop()
        return used

    monkeypatch.setattr(renewal, "stored_identity", stored)
    transport = ScriptedTransport(authority, [])
    with capture_logs() as logs:
        keeping = asyncio.create_task(Renewal(identity, cast(Any, transport)).keep())
        await asyncio.wait_for(transport.renewed.wait(), 30)
        keeping.cancel()
    complaints = [line for line in logs if line["event"] == "certificate.not_renewed"]
    assert (len(complaints), failures) == (20, [])
    assert ("exc_info" in complaints[0]) is isinstance(error, ValueError)


async def test_told_addresses_are_tried_at_most_once_in_a_while(
    identity: Identity, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Addresses] = []

    def keep(used: Identity, present: Addresses, _standby: str | None) -> Identity:
        tried.append(present)
        return used

    now_s = 1_000.0
    monkeypatch.setattr(renewal, "keep_addresses", keep)
    monkeypatch.setattr(renewal, "time", SimpleNamespace(monotonic=lambda: now_s))
    keeping, doors = Renewal(identity, cast(Any, None)), [Addresses(f"x:{port}", "y:1") for port in range(1, 6)]
    await keeping.note_addresses(None)
    for door in doors[:3]:
        await keeping.note_addresses(door)
    now_s += renewal.ADDRESSES_EVERY_S - 1
    await keeping.note_addresses(doors[3])
    assert tried == doors[:1]
    now_s += 1
    await keeping.note_addresses(doors[4])
    assert tried == [doors[0], doors[4]]


def renewed(identity: Identity, authority: Authority) -> Identity:
    """Returns the identity after one renewal. The folder holds the certificate before, too."""
    key = next_key(identity.folder)
    return save_renewal(identity, key, issued(authority, key.public_key(), time.time()))


UNKNOWN, REVOKED = CertificateUnknown(name="ann", serial="1"), CertificateRevoked(name="ann", revoked="today")


async def test_a_coordinator_restored_from_before_the_last_renewal_gets_the_certificate_before(
    identity: Identity, authority: Authority
) -> None:
    newest, transport = renewed(identity, authority), ScriptedTransport(authority, [])
    with capture_logs() as logs:
        await Renewal(newest, cast(Any, transport)).recover(UNKNOWN)
    first, last = (used.facts.serial for used in transport.used)
    assert first == identity.facts.serial
    assert last not in (identity.facts.serial, newest.facts.serial)
    assert [(line["event"], line["log_level"]) for line in logs] == [("certificate.renewed_again", "warning")]


@pytest.mark.parametrize(("refusal", "pause_s", "tries"), [(UNKNOWN, 59, 1), (UNKNOWN, 60, 2), (REVOKED, 0, 2)])
async def test_a_coordinator_that_does_not_know_this_member_is_asked_about_the_certificate_before_once_a_minute(
    refusal: CertificateRevoked | CertificateUnknown,
    pause_s: float,
    tries: int,
    identity: Identity,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 1_000.0
    monkeypatch.setattr(renewal, "time", SimpleNamespace(monotonic=lambda: now_s, time=time.time))
    newest, transport = renewed(identity, authority), ScriptedTransport(authority, [UNKNOWN] * 5)
    keeper = Renewal(newest, cast(Any, transport))
    for _ in range(2):
        with pytest.raises(type(refusal)):
            await keeper.recover(refusal)
        assert transport.used[-1] is newest, "the newest certificate stays in use"
        now_s += pause_s
    assert 5 - len(transport.refusals) == tries
