"""The loop that renews the certificate, against every refusal of the error tree and every status code of gRPC."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography import x509
from support.errors_to_raise import EVERY_BARE_CODE, EVERY_LEAF

from pluralllm.client.daemon import renewal
from pluralllm.client.daemon.renewal import Renewal
from pluralllm.client.link.tasks import Renewed
from pluralllm.common.trust.identity import Identity, Membership, next_key, save_identity
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
