"""A thief has a member's key: its renewals lock nobody out, and a name that is invited anew is not the thief's."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs
from support.coordinator_harness import BOOTSTRAP, HandClient, Served, serving

from pluralllm.client.daemon.renewal import Renewal, renew
from pluralllm.client.link.tasks import Introduction
from pluralllm.client.link.transport import Transport
from pluralllm.common.errors.grpc_status import from_rpc_error
from pluralllm.common.errors.membership import CertificateRevoked, RoleForbids
from pluralllm.common.errors.tree import PluralError
from pluralllm.common.process.clock import SystemClock
from pluralllm.common.trust.certificates import make_request, new_key
from pluralllm.common.trust.identity import Identity, load_identity, save_renewal
from pluralllm.common.wire.channels import secure_channel
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole
from pluralllm.v1 import operations_pb2 as ops
from pluralllm.v1 import operations_pb2_grpc

DAY_S = 86_400.0


def copied(identity: Identity, folder: Path) -> Identity:
    """Returns the identity in another folder, as a thief of the disk has it."""
    folder.mkdir(parents=True)
    for file in identity.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return Identity(
        folder, identity.membership, identity.authority_pem, identity.key_pem, identity.chain_pem, identity.facts
    )


async def renewed(identity: Identity) -> Identity:
    """Renews with a new key over the main port. Returns the identity with the next certificate."""
    transport, key = Transport.of_member(identity), new_key()
    try:
        answer = await transport.renew(make_request(key, identity.membership.name))
        return save_renewal(identity, key, answer.chain_pem)
    finally:
        await transport.close()


async def outcome(identity: Identity) -> PluralError | None:
    """Says Hello as a client with this identity. Returns the error of a refusal."""
    async with secure_channel(identity) as channel:
        try:
            await HandClient(channel, "ann", GroupRole.TRAIN, identity.membership.group).hello()
        except PluralError as error:
            return error
    return None


async def stolen(served: Served, tmp_path: Path, renewals: int) -> tuple[Identity, Sequence[Identity]]:
    """Lets a thief of ann's identity renew so many times. Returns ann's identity and those of the thief."""
    ann = await served.member("ann", MemberRole.CLIENT, "A")
    copies = [copied(ann, tmp_path / f"thief-{number}") for number in range(renewals)]
    return ann, [await renewed(copy) for copy in copies]


async def test_a_thiefs_renewals_do_not_use_up_those_of_the_owner(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        ann, thief = await stolen(served, tmp_path, 8)
        assert await outcome(thief[-1]) is None, "until the owner renews, or an administrator revokes"
        with capture_logs() as logs:
            owner = await renewed(ann)
        assert await outcome(owner) is None
        for identity in thief:
            error = await outcome(identity)
            assert isinstance(error, CertificateRevoked)
            assert "a later renewal of the same certificate took its place" in str(error)
            assert "If that was not you, somebody has the key" in str(error)
            with pytest.raises(CertificateRevoked):
                await renewed(identity)
        [line] = [line for line in logs if line["event"] == "certificate.renewed_again"]
        assert (line["name"], line["log_level"]) == ("ann", "warning")
        assert "pluralllm revoke ann" in line["fix"]


async def test_a_line_of_renewals_of_the_thief_ends_with_the_owners_next_renewal(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        ann, [thief] = await stolen(served, tmp_path, 1)
        line = [thief]
        for number in range(3):
            line.append(await renewed(copied(line[-1], tmp_path / f"deeper-{number}")))
        owner = await renewed(ann)
        assert {type(await outcome(identity)) for identity in line} == {CertificateRevoked}
        assert await outcome(owner) is None


async def test_an_owner_whose_certificate_a_thief_has_voided_goes_on_by_itself_and_says_so(tmp_path: Path) -> None:
    """The thief has the certificate before the owner's newest one, and renews it: the owner's is void."""
    async with serving(tmp_path / "state", SystemClock()) as served:
        ann = await served.member("ann", MemberRole.CLIENT, "A")
        copy = copied(ann, tmp_path / "thief")
        transport = Transport.of_member(ann)
        owner = await renew(ann, transport)
        thief = await renewed(copy)
        keeper = Renewal(owner, transport)
        refusal = await refusal_of(transport)
        with capture_logs() as logs:
            await keeper.recover(refusal)
        await transport.hello(Introduction("A", GroupRole.TRAIN, 50))
        assert isinstance(await outcome(thief), CertificateRevoked)
        assert isinstance(await outcome(owner), CertificateRevoked)
        [line] = [line for line in logs if line["event"] == "certificate.replaced_by_others"]
        assert line["log_level"] == "error"
        assert "a later renewal of the same certificate took its place" in line["problem"]
        assert "revoke this member" in line["fix"]
        stored = load_identity(ann.folder, "")
        assert await outcome(stored) is None
        assert stored.facts.serial == line["serial"]

        await served.registry.revoke(BOOTSTRAP, "ann", "key stolen")
        refusal = await refusal_of(transport)
        with pytest.raises(CertificateRevoked, match="The membership of ann was revoked"):
            await keeper.recover(refusal)
        await transport.close()


async def test_a_daemon_whose_certificate_another_process_has_renewed_reads_it_again(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", SystemClock()) as served:
        ann = await served.member("ann", MemberRole.CLIENT, "A")
        transport, other = Transport.of_member(ann), Transport.of_member(ann)
        daemon = await renew(ann, transport)
        again = await renew(ann, other)
        with capture_logs() as logs:
            await Renewal(daemon, transport).recover(await refusal_of(transport))
        await transport.hello(Introduction("A", GroupRole.TRAIN, 50))
        assert [line["serial"] for line in logs if line["event"] == "certificate.read_again"] == [again.facts.serial]
        for used in (transport, other):
            await used.close()


async def refusal_of(transport: Transport) -> CertificateRevoked:
    with pytest.raises(CertificateRevoked) as refusal:
        await transport.hello(Introduction("A", GroupRole.TRAIN, 50))
    return refusal.value


async def test_an_old_certificate_gets_no_rights_of_a_name_that_is_invited_anew(tmp_path: Path) -> None:
    """The membership ended by expiry, which revokes nothing: the last certificate is over, an earlier one is not."""
    ago_s = [31 * DAY_S]
    async with serving(tmp_path / "state", wall_s=lambda: time.time() - ago_s[0]) as served:
        served.registry._life_s = 90 * DAY_S
        old = (await served.member("ann", MemberRole.CLIENT, "A")).at(served.address)
        served.registry._life_s = 30 * DAY_S
        ago_s[0] -= 1.0
        await served.registry.renew(served.registry.principal(old.chain_pem), make_request(new_key(), "ann"))
        ago_s[0] = 0.0
        thief = copied(old, tmp_path / "thief")
        assert await members_seen(thief) == RoleForbids
        old.credentials.unlink()
        admin = (await served.member("ann", MemberRole.ADMIN)).at(served.address)
        assert await members_seen(thief) == CertificateRevoked
        assert await members_seen(admin) is None
    async with serving(tmp_path / "state") as served:  # and after a restart
        assert await members_seen(thief.at(served.address)) == CertificateRevoked
        assert await members_seen(admin.at(served.address)) is None


async def members_seen(identity: Identity) -> type[PluralError] | None:
    """Asks for the list of members, which only administrators may see. Returns the error's class if it is refused."""
    async with secure_channel(identity) as channel:
        stub: Any = operations_pb2_grpc.OperationsServiceStub(channel)
        try:
            await stub.ListMembers(ops.ListMembersRequest(), timeout=10)
        except grpc.RpcError as error:
            return type(from_rpc_error(error, "the coordinator"))
    return None
