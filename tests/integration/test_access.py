"""Every role calls every RPC over real mutual TLS, and every kind of wrong certificate is tried."""

import asyncio
import contextlib
import datetime
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from google.protobuf import descriptor_pool
from google.protobuf.message_factory import GetMessageClass
from structlog.testing import capture_logs
from support.coordinator_harness import DEADLINE_S, Served, keep_identity, serving, small_spec, write_delta

from pluralllm.client.joining.diagnosis import diagnose
from pluralllm.client.joining.enrolment import ask_server, check_membership, join
from pluralllm.common.errors.grpc_status import from_rpc_error
from pluralllm.common.errors.membership import (
    AwaitingApproval,
    CertificateExpired,
    CertificateForeign,
    CertificateNotYetValid,
    CertificateRevoked,
    CertificateUnknown,
    CertificateWrongUse,
    IdentityMismatch,
    RoleForbids,
    TooManyAttempts,
)
from pluralllm.common.errors.tree import OverLimit, PluralError, StaleSession, Unidentified, Unreachable, reason_of
from pluralllm.common.process.clock import FakeClock
from pluralllm.common.trust.certificates import make_request, member_uri, new_key
from pluralllm.common.trust.identity import Identity, save_renewal
from pluralllm.common.wire.channels import secure_channel
from pluralllm.common.wire.messages import CLIENT_ID_KEY
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.composition import running
from pluralllm.server.members import audit_log
from pluralllm.server.members.access import ALL_RUNS, RULES, Principal
from pluralllm.server.members.authority import create_authority
from pluralllm.server.members.invite_order import InviteOrder
from pluralllm.server.process.config import ServerConfig
from pluralllm.server.rpc.serving import SERVICES
from pluralllm.v1 import federation_pb2 as pb
from pluralllm.v1 import operations_pb2, operations_pb2_grpc
from pluralllm.v1 import resources_pb2 as rpb

CLIENT, OBSERVER, ADMIN = MemberRole.CLIENT, MemberRole.OBSERVER, MemberRole.ADMIN
ADMINISTRATOR = Principal(ClientId("admin"), ADMIN)
ONLY_IN_NEWER_RELEASES = {"/grpc.health.v1.Health/List"}

# The expected permissions, written a second time, independently of the coordinator's table.
EXPECTED: dict[str, frozenset[MemberRole]] = {
    rpc: frozenset(roles)
    for roles, rpcs in (
        ((CLIENT,), "Hello Poll GetRunSpec GetRollouts GetRoundStep PutRoundStep BeginUpdate PutChunks CommitUpdate"),
        ((CLIENT,), "ReportEvaluation ReportProgress ReportFailure GetRoster CompareQuestions"),
        (
            (CLIENT, ADMIN),
            "ListVersionRecords GetManifest GetChunks GetTranscript GetMaskedChunks GetModel ListAuditEvents",
        ),
        ((ADMIN,), "CreateRun StartRun PauseRun ResumeRun CancelRun ArchiveRun UnarchiveRun AskRewards GetRewards"),
        ((ADMIN,), "ListMembers CreateInvite ApproveMember RevokeMember ResetPeerKey"),
        ((OBSERVER, ADMIN), "CreatePageLink"),
        (tuple(MemberRole), "GetRun ListRuns GetRound ListRounds ListEvaluations WatchRun"),
        (tuple(MemberRole), "Check List Watch ServerReflectionInfo Renew"),
        ((), "Join GetMembership"),
    )
    for rpc in rpcs.split()
}
SERVED = (*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection")


def methods() -> dict[str, Any]:
    """Returns every RPC of the main port, from the descriptors of its services."""
    pool = descriptor_pool.Default()
    services = [pool.FindServiceByName(name) for name in SERVED]
    return {f"/{service.full_name}/{method.name}": method for service in services for method in service.methods}


METHODS = methods()


async def call(channel: grpc.aio.Channel, path: str, request: Any = None, metadata: Any = None) -> Any:
    """Makes one call of any kind with an empty request; returns a stream's first answer. Raises the error of a refusal."""
    method = METHODS[path]
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    ask, answer = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    stub = getattr(channel, kind)(
        path, request_serializer=ask.SerializeToString, response_deserializer=answer.FromString
    )
    message = ask() if request is None else request

    async def messages() -> AsyncIterator[Any]:
        yield message

    calling = stub(messages() if method.client_streaming else message, metadata=metadata, timeout=DEADLINE_S)
    try:
        if not method.server_streaming:
            return await calling
        async for first in calling:
            calling.cancel()
            return first
    except grpc.RpcError as error:
        raise from_rpc_error(error, "the coordinator") from error


async def refused(channel: grpc.aio.Channel, path: str) -> PluralError | None:
    try:
        await call(channel, path)
    except PluralError as error:
        return error
    return None


def test_every_rpc_has_a_row_and_every_row_an_rpc() -> None:
    """A new RPC without a row is refused to everybody; this test then fails."""
    assert METHODS.keys() <= RULES.keys()
    assert RULES.keys() - METHODS.keys() <= ONLY_IN_NEWER_RELEASES
    assert {path.rpartition("/")[2] for path in RULES} == EXPECTED.keys()


@pytest.mark.parametrize("role", MemberRole)
async def test_a_role_may_do_what_it_is_for_and_nothing_else(tmp_path: Path, role: MemberRole) -> None:
    async with serving(tmp_path / "state") as served:
        await served.create("r", small_spec(), start=False)
        channel = served.channel_of(await served.member("someone", role))
        before = served.registry.audit.head[0]
        for path in METHODS:
            error, name = await refused(channel, path), path.rpartition("/")[2]
            if role in EXPECTED[name]:
                assert not isinstance(error, RoleForbids), f"{role} must be allowed {name}"
            else:
                assert isinstance(error, RoleForbids), f"{role} must be refused {name}, got {error!r}"
                assert (error.name, error.role, error.rpc) == ("someone", role, name)
        called = {path.rpartition("/")[2] for path in METHODS}
        forbidden = [name for name in called if role not in EXPECTED[name]]
        entries = [entry for entry, _ in await served.registry.audit.entries(before, 1000)]
        assert {entry.action for entry in entries if entry.result == "ROLE_FORBIDS"} == set(forbidden)
        run = await served.run("r")
        assert (run.phase, len(served.parts.runs.all())) == (rpb.RUN_PHASE_CREATED, 1), "nothing was changed"


# Certificates


def forge(
    identity: Identity,
    served: Served,
    *,
    start_s: float = -60.0,
    end_s: float = 3600.0,
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
) -> Identity:
    """Makes a certificate that the authority signs but would never issue; times are relative to now."""
    authority, key, now = served.registry.authority, new_key(), datetime.datetime.now(tz=datetime.UTC)
    member = identity.membership
    uri = x509.UniformResourceIdentifier(member_uri(member.federation, member.role, member.name))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, member.name)]))
        .issuer_name(authority.issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(seconds=start_s))
        .not_valid_after(now + datetime.timedelta(seconds=end_s))
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .sign(authority.issuer_key, hashes.SHA256())
    )
    chain = b"".join(c.public_bytes(serialization.Encoding.PEM) for c in (certificate, authority.issuer))
    return save_renewal(identity, key, chain)


def foreign(identity: Identity, folder: Path) -> Identity:
    """Makes another federation's certificate for the same name."""
    other = create_authority(folder / "authority", identity.membership.federation, ["x"], None, time.time())
    key, member = new_key(), identity.membership
    return save_renewal(
        identity, key, other.issue_member(key.public_key(), member.name, member.role, 3600, time.time())
    )


FORGED: dict[type[PluralError], Callable[[Identity, Served, Path], Identity]] = {
    CertificateExpired: lambda identity, served, _: forge(identity, served, start_s=-7200, end_s=-3600),
    CertificateNotYetValid: lambda identity, served, _: forge(identity, served, start_s=3600, end_s=7200),
    CertificateWrongUse: lambda identity, served, _: forge(identity, served, usage=ExtendedKeyUsageOID.SERVER_AUTH),
    CertificateForeign: lambda identity, _, folder: foreign(identity, folder),
}


@pytest.mark.parametrize("reason", FORGED)
async def test_a_wrong_certificate_never_gets_through_and_its_owner_is_told_why(
    tmp_path: Path, reason: type[PluralError]
) -> None:
    """TLS refuses the connection without a message; the enrolment port gives the reason, and the log has it."""
    async with serving(tmp_path / "state") as served:
        good = await served.member("ann", CLIENT)
        good = good.at(served.address)
        identity = FORGED[reason](good, served, tmp_path / "other")
        async with secure_channel(identity) as channel:
            with pytest.raises(Unreachable):
                await call(channel, "/pluralllm.v1.FederationService/Hello")
        with capture_logs() as logs, pytest.raises(reason):
            await asyncio.to_thread(
                check_membership, served.enrolment_address, identity.authority_pem, identity.chain_pem
            )
        assert [line["reason"] for line in logs if line["event"] == "standing.refused"] == [reason_of(reason)]
        cause = await asyncio.to_thread(diagnose, identity.at(enrolment=served.enrolment_address))
        assert cause is not None
        assert isinstance(cause.error, reason)
        assert cause.final
        assert served.parts.sessions.get(ClientId("ann")) is None


async def test_no_certificate_gets_no_connection(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        credentials = grpc.ssl_channel_credentials(served.registry.authority.root_pem)
        async with grpc.aio.secure_channel(served.address, credentials) as channel:
            with pytest.raises(Unreachable):
                await call(channel, "/pluralllm.v1.OperationsService/ListRuns")
        async with grpc.aio.insecure_channel(served.address) as channel:
            with pytest.raises(Unreachable):
                await call(channel, "/pluralllm.v1.OperationsService/ListRuns")


async def test_made_up_names_do_not_hide_a_stolen_token_from_the_audit_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_log, "MAX_REFUSALS_REMEMBERED", 5)
    async with serving(tmp_path / "state") as served:
        _, token = await served.registry.invite(ADMINISTRATOR, InviteOrder("ann", OBSERVER, runs=(ALL_RUNS,)))
        await served.registry.join("ann", token, make_request(new_key(), "ann"))
        before = served.registry.audit.head[0]
        authority_pem, request = served.registry.authority.root_pem, make_request(new_key(), "x")
        tries = [*((f"name-{number}", "A" * 43, request) for number in range(8)), ("name-9", token, request)]
        for name, tried, sent in [*tries, ("name-8", token, b"garbage"), ("ann", token, request)]:
            with pytest.raises(PluralError):
                await asyncio.to_thread(join, served.enrolment_address, authority_pem, name, tried, sent)
        entries = [entry for entry, _ in await served.registry.audit.entries(before, 100)]
        assert [(entry.object, entry.result) for entry in entries] == [
            ("members/?", "INVITE_UNKNOWN"),
            ("members/?", "INVITE_FOR_ANOTHER"),
            ("members/?", "CERTIFICATE_INVALID"),
            ("members/ann", "INVITE_USED"),
        ]


async def test_whoever_knocks_too_often_or_for_another_thing_is_in_the_log_once_a_minute(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", joins_per_minute=1) as served:
        authority_pem = served.registry.authority.root_pem
        with capture_logs() as logs:
            await asyncio.to_thread(ask_server, served.enrolment_address, authority_pem)
            for _ in range(3):
                with pytest.raises(TooManyAttempts):
                    await asyncio.to_thread(ask_server, served.enrolment_address, authority_pem)
            credentials = grpc.ssl_channel_credentials(authority_pem)
            async with grpc.aio.secure_channel(served.enrolment_address, credentials) as channel:
                for _ in range(3):
                    with pytest.raises(RoleForbids):
                        await call(channel, "/pluralllm.v1.EnrolmentService/Renew")
        refusals = [(line["reason"], line["peer"]) for line in logs if line["event"] == "enrolment.refused"]
        assert refusals == [("TOO_MANY_ATTEMPTS", "ipv4:127.0.0.1"), ("ROLE_FORBIDS", "ipv4:127.0.0.1")]


async def test_a_certificate_of_our_authority_that_is_not_on_the_list_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        identity = forge(await served.member("ann", ADMIN), served).at(served.address)
        async with secure_channel(identity) as channel:
            with pytest.raises(CertificateUnknown):
                await call(channel, "/pluralllm.v1.OperationsService/ListRuns")


async def test_a_role_in_a_certificate_gives_no_right_that_the_list_does_not(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        observer = await served.member("eve", OBSERVER)
        claims = replace(observer.membership, role=ADMIN)
        identity = forge(replace(observer, membership=claims), served).at(served.address)
        async with secure_channel(identity) as channel:
            with pytest.raises(CertificateUnknown):
                await call(channel, "/pluralllm.v1.OperationsService/ListMembers")


# A caller's identity is that of its certificate


async def test_an_id_in_a_message_that_is_not_the_certificates_is_refused_and_audited(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        ann = await served.client("ann")
        channel = served.channels["ann"]
        before = served.registry.audit.head[0]
        with pytest.raises(IdentityMismatch):
            await call(channel, "/pluralllm.v1.FederationService/Poll", metadata=((CLIENT_ID_KEY, "ben"),))
        with pytest.raises(IdentityMismatch):
            await ann.call("ReportProgress", pb.ReportProgressRequest(task="runs/r/rounds/1/tasks/train-ben"))
        entries = [entry for entry, _ in await served.registry.audit.entries(before, 10)]
        assert [(entry.actor, entry.action, entry.result) for entry in entries] == [
            ("ann", "Poll", "IDENTITY_MISMATCH"),
            ("ann", "ReportProgress", "IDENTITY_MISMATCH"),
        ]


@pytest.mark.parametrize(("group", "role"), [("another", GroupRole.TRAIN), ("group of ann", GroupRole.HELD_OUT)])
async def test_a_client_cannot_speak_for_another_group_or_in_another_role(
    tmp_path: Path, group: str, role: GroupRole
) -> None:
    async with serving(tmp_path / "state") as served:
        ann = await served.client("ann")
        ann.group, ann.role = group, role
        with pytest.raises(IdentityMismatch, match="group of ann"):
            await ann.hello()
        session = served.parts.sessions.of(ClientId("ann"))
        assert (session.group, session.role) == ("group of ann", GroupRole.TRAIN)


async def test_calls_of_one_member_at_a_time_are_bounded(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", calls_per_member=2) as served:
        ann = await served.client("ann")
        ben = await served.client("ben")
        held = [asyncio.create_task(ann.poll(hold_s=20)) for _ in range(2)]
        await polls_open(served, "ann", 2)
        with pytest.raises(OverLimit, match="calls of ann"):
            await ann.poll()
        await ben.poll()
        served.coordinator.drain()
        await asyncio.wait_for(asyncio.gather(*held), 10)


# Open connections


async def polls_open(served: Served, name: str, count: int) -> None:
    while served.parts.sessions.of(ClientId(name)).polls_open < count:
        await served.parts.run_bell.wait(served.parts.run_bell.rings, 0.02)


async def test_a_revocation_works_on_the_open_connection_at_the_next_call(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        ann = await served.client("ann")
        held = asyncio.create_task(ann.poll(hold_s=20))
        await polls_open(served, "ann", 1)
        request = operations_pb2.RevokeMemberRequest(name="members/ann", reason="left the project")
        revoked = await served.operations.RevokeMember(request, timeout=DEADLINE_S)
        assert revoked.member.state == rpb.MEMBER_STATE_REVOKED
        with pytest.raises(StaleSession):
            await asyncio.wait_for(held, 10)
        with pytest.raises(CertificateRevoked):
            await ann.hello()
        [entry] = [entry for entry, _ in await served.registry.audit.entries(0, 100) if entry.action == "RevokeMember"]
        assert (entry.actor, entry.object) == ("admin", "members/ann")
        assert "left the project" in entry.facts_json


async def test_a_revocation_ends_a_stream_that_is_under_way(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        await served.create("r", small_spec(), start=False)
        observer = await served.member("watcher", OBSERVER)
        stub: Any = operations_pb2_grpc.OperationsServiceStub(served.channel_of(observer))
        stream = stub.WatchRun(operations_pb2.WatchRunRequest(name="runs/r"), timeout=DEADLINE_S)
        await served.operations.StartRun(operations_pb2.StartRunRequest(name="runs/r"), timeout=DEADLINE_S)
        assert (await stream.read()).event.kind == "RunStarted"
        await served.registry.revoke(ADMINISTRATOR, "watcher", "")
        await served.operations.PauseRun(operations_pb2.PauseRunRequest(name="runs/r"), timeout=DEADLINE_S)
        with pytest.raises(grpc.RpcError) as found:
            await stream.read()
        assert isinstance(from_rpc_error(found.value, ""), CertificateRevoked)


async def test_expiry_works_on_the_open_connection(tmp_path: Path) -> None:
    """The coordinator's wall clock moves on while the connection stays open."""
    later_s = [0.0]
    async with serving(tmp_path / "state", wall_s=lambda: time.time() + later_s[0]) as served:
        ann = await served.client("ann")
        later_s[0] = 31 * 86_400.0
        with pytest.raises(CertificateExpired):
            await ann.poll()


async def test_an_update_of_a_revoked_member_does_not_count_unless_averaging_has_begun(tmp_path: Path) -> None:
    spec = small_spec(round={"min_clients": 2, "target_clients": 3, "deadline_s": 1000})
    async with serving(tmp_path / "state") as served:
        ann, ben, cas = [await served.client(name) for name in ("ann", "ben", "cas")]
        await served.create("r", spec)
        for client in (ann, ben, cas):
            await client.evaluate(await client.task())
        tasks = {client: await client.task() for client in (ann, ben, cas)}
        for client, seed in ((ann, 1), (ben, 2)):
            await client.push(tasks[client], tmp_path / client.name, write_delta(tmp_path / client.name, spec, seed))
        request = operations_pb2.RevokeMemberRequest(name="members/ann")
        await served.operations.RevokeMember(request, timeout=DEADLINE_S)
        await cas.push(tasks[cas], tmp_path / "cas", write_delta(tmp_path / "cas", spec, 3))
        async with asyncio.timeout(20):  # the clock stands still: nobody else can come, so the grace is not waited for
            while not (found := await served.parts.store.versions(served.parts.runs.all()[0].id))[1:]:
                await served.parts.run_bell.wait(served.parts.run_bell.rings, 0.1)
        assert [client for client, _, _ in found[1].updates] == ["ben", "cas"]
        round_ = await served.operations.GetRound(operations_pb2.GetRoundRequest(name="runs/r/rounds/1"))
        assert [receipt.client for receipt in round_.round.receipts] == ["ben", "cas"]


async def test_a_revocation_that_a_crash_cut_off_from_its_effect_has_it_after_the_restart(tmp_path: Path) -> None:
    spec = small_spec(round={"min_clients": 2, "target_clients": 2, "deadline_s": 1000})
    async with serving(tmp_path / "state") as served:
        ann, ben = await served.client("ann"), await served.client("ben")
        await served.create("r", spec)
        for client in (ann, ben):
            await client.evaluate(await client.task())
        task = await ann.task()
        await ann.push(task, tmp_path / "u", write_delta(tmp_path / "u", spec, 1))
        await served.registry.revoke(ADMINISTRATOR, "ann", "")  # stored, but the coordinator is not notified
    async with serving(tmp_path / "state") as served:
        [run] = served.parts.runs.all()
        assert run.state.receipts == ()
        assert run.state.is_excluded(ClientId("ann"))


# The audit log


async def test_the_audit_log_has_the_outcome_of_every_call_that_steers_or_manages(tmp_path: Path) -> None:
    """An accepted call, and refusals of each kind: no such run, another spec, a bad id, a wrong phase, a bad request."""
    other, ops = small_spec(rounds=3), operations_pb2
    calls: list[tuple[str, Any, list[tuple[str, str]]]] = [
        (
            "CreateRun",
            ops.CreateRunRequest(run_id="r", spec_json=small_spec().canonical_json()),
            [("runs/r", "ACCEPTED")],
        ),
        (
            "CreateRun",
            ops.CreateRunRequest(run_id="r", spec_json=other.canonical_json()),
            [("runs/r", "SPEC_MISMATCH")],
        ),
        ("CreateRun", ops.CreateRunRequest(run_id="R!", spec_json=b"{}"), [("runs/R!", "INVALID_ARGUMENT")]),
        ("CreateRun", ops.CreateRunRequest(run_id="s", spec_json=b"{"), [("runs/s", "INVALID_SPEC")]),
        ("PauseRun", ops.PauseRunRequest(name="runs/r"), [("runs/r", "WRONG_PHASE")]),
        ("StartRun", ops.StartRunRequest(name="runs/nosuch"), [("runs/nosuch", "NOT_FOUND")]),
        ("StartRun", ops.StartRunRequest(name="nosuch"), [("nosuch", "INVALID_ARGUMENT")]),
        ("StartRun", ops.StartRunRequest(name="runs/\0"), [("runs/\\x00", "INVALID_ARGUMENT")]),
        ("StartRun", ops.StartRunRequest(name="runs/-"), [("runs/-", "INVALID_ARGUMENT")]),
        ("StartRun", ops.StartRunRequest(name="runs/r"), [("runs/r", "ACCEPTED")]),
        ("ArchiveRun", ops.ArchiveRunRequest(name="runs/r"), [("runs/r", "RUN_NOT_ENDED")]),
        ("CancelRun", ops.CancelRunRequest(name="runs/r"), [("runs/r", "ACCEPTED")]),
        ("ArchiveRun", ops.ArchiveRunRequest(name="runs/-"), [("runs/-", "INVALID_ARGUMENT")]),
        ("ArchiveRun", ops.ArchiveRunRequest(name="runs/r"), [("runs/r", "ACCEPTED")]),
        ("UnarchiveRun", ops.UnarchiveRunRequest(name="runs/-"), [("runs/-", "INVALID_ARGUMENT")]),
        ("UnarchiveRun", ops.UnarchiveRunRequest(name="runs/r"), [("runs/r", "ACCEPTED")]),
        ("AskRewards", ops.AskRewardsRequest(name="runs/-"), [("runs/-", "INVALID_ARGUMENT")]),
        ("AskRewards", ops.AskRewardsRequest(name="runs/r"), [("runs/r", "*")]),
    ]
    once: list[tuple[str, Any, tuple[str, str]]] = [
        ("GetRewards", ops.GetRewardsRequest(name="runs/q/rounds/1"), ("runs/q/rounds/1", "NOT_FOUND")),
        (
            "CreateInvite",
            ops.CreateInviteRequest(name="admin", role=rpb.MEMBER_ROLE_ADMIN),
            ("members/admin", "MEMBER_EXISTS"),
        ),
        ("CreateInvite", ops.CreateInviteRequest(name="x"), ("members/x", "INVALID_ARGUMENT")),
        ("ApproveMember", ops.ApproveMemberRequest(name="members/x"), ("members/x", "NOT_FOUND")),
        ("RevokeMember", ops.RevokeMemberRequest(name="members/admin"), ("members/admin", "LAST_ADMIN")),
    ]
    async with serving(tmp_path / "state") as served:
        before = served.registry.audit.head[0]
        path = "/pluralllm.v1.OperationsService/"
        for name, request, _ in calls:
            with contextlib.suppress(PluralError):
                await call(served.channel, path + name, request)
        for name, request, _ in once:
            for _ in range(2):
                with pytest.raises(PluralError):
                    await call(served.channel, path + name, request)
        with pytest.raises(PluralError):
            await call(served.channel, "/pluralllm.v1.EnrolmentService/Renew")
        entries = [entry for entry, _ in await served.registry.audit.entries(before, 1000)]
        rows = [(entry.action, entry.object, entry.result) for entry in entries]
        assert {entry.actor for entry in entries} == {"admin"}
    expected = []
    for name, _, [(about, result)] in calls:
        expected += [(name, about, "BEGUN"), (name, about, result)]
    expected += [(name, about, result) for name, _, (about, result) in once]
    expected.append(("Renew", "", "CERTIFICATE_INVALID"))
    asked = next(entry for entry in rows if entry[:2] == ("AskRewards", "runs/r") and entry[2] != "BEGUN")
    assert asked[2] in ("INVALID_ARGUMENT", "WRONG_PHASE")
    assert [("AskRewards", "runs/r", "*") if entry == asked else entry for entry in rows] == expected


@pytest.mark.parametrize(("error", "result"), [(KeyError("x"), "INTERNAL"), (asyncio.CancelledError(), "CALLER_GONE")])
async def test_a_call_that_ends_without_an_answer_has_an_outcome_in_the_audit_log_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, result: str
) -> None:
    async def fails(*_: Any) -> None:
        raise error

    async with serving(tmp_path / "state") as served:
        before = served.registry.audit.head[0]
        monkeypatch.setattr(served.coordinator, "create_run", fails)
        request = operations_pb2.CreateRunRequest(run_id="r")
        with pytest.raises(PluralError):
            await call(served.channel, "/pluralllm.v1.OperationsService/CreateRun", request)
        entries = [entry for entry, _ in await served.registry.audit.entries(before, 1000)]
    assert [(entry.object, entry.result) for entry in entries] == [("runs/r", "BEGUN"), ("runs/r", result)]


# Approval


async def test_a_member_that_needs_approval_may_do_nothing_before_it(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        _, token = await served.registry.invite(
            ADMINISTRATOR, InviteOrder("ann", OBSERVER, needs_approval=True, runs=(ALL_RUNS,))
        )
        key = new_key()
        member, chain = await served.registry.join("ann", token, make_request(key, "ann"))
        identity = keep_identity(tmp_path / "ann", served.registry, member, key, chain, served.address)
        channel = served.channel_of(identity)
        with pytest.raises(AwaitingApproval):
            await call(channel, "/pluralllm.v1.OperationsService/ListRuns")
        await served.operations.ApproveMember(operations_pb2.ApproveMemberRequest(name="members/ann"), timeout=10)
        await call(channel, "/pluralllm.v1.OperationsService/ListRuns")


async def test_plain_text_believes_whoever_calls_and_serves_no_members(tmp_path: Path) -> None:
    config = ServerConfig(state_dir=tmp_path / "state", listen="127.0.0.1:0", plain_text=True)
    async with running(config, FakeClock()) as found, grpc.aio.insecure_channel(found.address) as channel:
        await call(channel, "/pluralllm.v1.OperationsService/ListRuns")
        with pytest.raises(Unidentified):
            await call(channel, "/pluralllm.v1.FederationService/Hello", metadata=((CLIENT_ID_KEY, "No Such Id"),))
        with pytest.raises(RoleForbids):
            await call(channel, "/pluralllm.v1.FederationService/Hello")
