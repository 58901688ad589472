"""The door admits callers by their identity, rate, role and open calls, and tells the audit log what the table demands."""

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from pluralllm.common.errors.membership import (
    CertificateUnknown,
    IdentityMismatch,
    RoleForbids,
    RunNotShared,
    TooManyCalls,
)
from pluralllm.common.errors.tree import NotFound, OverLimit, PluralError, Unidentified
from pluralllm.common.trust.certificates import new_key
from pluralllm.common.wire.messages import CLIENT_ID_KEY
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.roles import MemberRole
from pluralllm.server.members import door
from pluralllm.server.members.access import Principal
from pluralllm.server.members.authority import create_authority
from pluralllm.server.members.door import EnrolmentDoor, MainDoor, by_certificate, by_word
from pluralllm.server.members.rates import rates_of_members
from pluralllm.v1 import federation_pb2 as fed
from pluralllm.v1 import operations_pb2 as ops

LONG = "x" * 4_000_000


@pytest.mark.parametrize(
    "request_", [ops.GetRunRequest(name=LONG), fed.CommitUpdateRequest(task=LONG), ops.CreateRunRequest(run_id=LONG)]
)
def test_a_long_name_is_cut_before_it_is_read(request_: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []

    def noted(text: str) -> str:
        lengths.append(len(text))
        return text

    monkeypatch.setattr(door, "printable", noted)
    assert door.about_of(request_).endswith("xxx")
    assert lengths[0] <= 200 + len("runs/")


class Log:
    """An audit log that keeps the results."""

    def __init__(self) -> None:
        self.results: list[str] = []

    async def refused(self, actor: Any, action: str, about: str, error: PluralError) -> None:
        self.results.append(error.reason)

    async def record_outcome(self, actor: Any, action: str, about: str, result: str) -> None:
        self.results.append(result)

    record = record_outcome


async def test_calls_above_the_limit_and_unexpected_failures_of_managing_calls_have_an_entry() -> None:
    audit: Any = Log()
    guarded = MainDoor(lambda context: lambda: Principal(door.LOCAL, MemberRole.ADMIN), audit, calls_per_member=1)
    method, request = "/pluralllm.v1.OperationsService/RevokeMember", ops.RevokeMemberRequest(name="members/ann")

    async def fails() -> None:
        async with guarded.enter(method, None, request):
            with pytest.raises(OverLimit):
                await guarded.enter(method, None, request).__aenter__()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fails()
    assert audit.results == ["OVER_LIMIT", "INTERNAL"]


FEDERATION, OPERATIONS = "/pluralllm.v1.FederationService/", "/pluralllm.v1.OperationsService/"
ANN, ADMIN = Principal(ClientId("ann"), MemberRole.CLIENT, "1f"), Principal(ClientId("root"), MemberRole.ADMIN, "2f")


class Context:
    """The context of a gRPC call: the client certificate, the metadata and the address of the peer."""

    def __init__(
        self, certificate: bytes | None = None, peer: str = "ipv4:192.0.2.1:5000", claimed: str | None = None
    ) -> None:
        self._certificate, self._peer, self._claimed = certificate, peer, claimed

    def auth_context(self) -> dict[str, list[bytes]]:
        return {} if self._certificate is None else {"x509_pem_cert": [self._certificate]}

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("other", "x"),) if self._claimed is None else ((CLIENT_ID_KEY, self._claimed),)

    def peer(self) -> str:
        return self._peer


def door_of(principal: Principal, audit: Any, calls: int = 2, rates: Any = None) -> MainDoor:
    return MainDoor(lambda context: lambda: principal, audit, calls, rates)


async def enter(guarded: Any, method: str, error: BaseException | None = None, context: Any = None) -> None:
    """Makes a call whose handler ends with this error."""
    async with guarded.enter(method, context or Context(), ops.RevokeMemberRequest(name="members/ann")):
        if error is not None:
            raise error


async def test_the_caller_is_known_within_a_call_and_not_outside(log: Log) -> None:
    async with door_of(ANN, log).enter(f"{FEDERATION}Hello", Context(), None):
        assert door.caller() == ANN
    with pytest.raises(LookupError):
        door.caller()
    assert log.results == []


@pytest.fixture
def log() -> Log:
    return Log()


async def test_a_member_has_some_open_calls_at_a_time_and_others_have_their_own(log: Log) -> None:
    principal = [ANN]
    audit: Any = log
    guarded = MainDoor(lambda context: lambda: principal[0], audit, calls_per_member=2)
    method = f"{FEDERATION}Poll"
    async with guarded.enter(method, Context(), None), guarded.enter(method, Context(), None):
        with pytest.raises(OverLimit) as refused:
            await enter(guarded, method)
        assert (refused.value.got, refused.value.limit) == (3, 2)
        principal[0] = Principal(ClientId("ben"), MemberRole.CLIENT)
        await enter(guarded, method)
    principal[0] = ANN
    for _ in range(3):
        await enter(guarded, method)
    assert log.results == ["OVER_LIMIT"]


OUTCOMES: dict[str, BaseException | None] = {
    "ok": None,
    "refusal": NotFound(what="run", name="r"),
    "no right": RunNotShared(name="ann", run="r"),
    "bug": ZeroDivisionError(),
    "gone": asyncio.CancelledError(),
}


@pytest.mark.parametrize(
    ("principal", "method", "entries"),
    [
        (ANN, f"{FEDERATION}Hello", {"no right": ["RUN_NOT_SHARED"]}),
        (
            ADMIN,
            f"{OPERATIONS}RevokeMember",
            {"refusal": ["NOT_FOUND"], "no right": ["RUN_NOT_SHARED"], "bug": ["INTERNAL"]},
        ),
        (
            ADMIN,
            f"{OPERATIONS}StartRun",
            {
                "ok": ["BEGUN", "ACCEPTED"],
                "refusal": ["BEGUN", "NOT_FOUND"],
                "no right": ["BEGUN", "RUN_NOT_SHARED"],
                "bug": ["BEGUN", "INTERNAL"],
                "gone": ["BEGUN", "CALLER_GONE"],
            },
        ),
    ],
)
@pytest.mark.parametrize("outcome", OUTCOMES)
async def test_the_audit_log_gets_what_the_table_demands(
    log: Log, principal: Principal, method: str, entries: dict[str, list[str]], outcome: str
) -> None:
    error = OUTCOMES[outcome]
    if error is None:
        await enter(door_of(principal, log), method)
    else:
        with pytest.raises(type(error)):
            await enter(door_of(principal, log), method, error)
    assert log.results == entries.get(outcome, [])


async def test_a_forbidden_call_is_refused_on_record_and_so_is_a_stream_that_has_lost_its_right(log: Log) -> None:
    with pytest.raises(RoleForbids):
        await enter(door_of(ANN, log), f"{OPERATIONS}StartRun")
    assert log.results == ["ROLE_FORBIDS"]
    principal = [ANN]
    audit: Any = log
    guarded = MainDoor(lambda context: lambda: principal[0], audit, calls_per_member=2)
    async with guarded.enter(f"{FEDERATION}GetChunks", Context(), None) as check:
        check()
        principal[0] = Principal(ClientId("ann"), MemberRole.OBSERVER)
        with pytest.raises(RoleForbids):
            check()


async def test_calls_above_the_rate_are_refused_and_told_once(log: Log) -> None:
    guarded = door_of(ANN, log, rates=rates_of_members(1.0, 1, 3600.0))
    refused = 0
    for _ in range(200):
        try:
            await enter(guarded, f"{FEDERATION}GetRunSpec")
        except TooManyCalls:
            refused += 1
    assert refused > 100
    assert log.results == ["TOO_MANY_CALLS"]


# Identities


def test_in_plain_text_the_call_names_its_client_and_no_name_is_the_administrator() -> None:
    assert by_word(Context())() == Principal(door.LOCAL, MemberRole.ADMIN)
    named = by_word(Context(claimed="ann"))()
    assert named == Principal(ClientId("ann"), MemberRole.CLIENT)
    for bad in ("", "a/b", "x" * 65):
        with pytest.raises(Unidentified):
            by_word(Context(claimed=bad))


class OneMember:
    """A registry that knows one certificate."""

    def principal(self, pem: bytes) -> Principal:
        if pem != b"good":
            raise CertificateUnknown(name="eve", serial="66")
        return ANN


def test_a_certificate_proves_a_name_and_a_call_may_claim_no_other() -> None:
    registry: Any = OneMember()
    identify = by_certificate(registry)
    assert identify(Context(b"good"))() == ANN
    assert identify(Context(b"good", claimed="ann"))() == ANN
    with pytest.raises(IdentityMismatch):
        identify(Context(b"good", claimed="ben"))()
    with pytest.raises(Unidentified):
        identify(Context())
    with pytest.raises(CertificateUnknown):
        identify(Context(b"bad"))()


async def test_a_certificate_that_is_not_accepted_has_a_rate_of_its_own(log: Log, tmp_path: Any) -> None:
    now_s = 1_800_000_000.0
    authority = create_authority(tmp_path / "authority", "fed", ["127.0.0.1"], None, now_s)
    key = new_key().public_key()
    pem = authority.issue_member(key, ClientId("ann"), MemberRole.CLIENT, 3600.0, now_s)
    registry, audit = OneMember(), log
    guarded = MainDoor(by_certificate(registry), audit, 2, rates_of_members(1.0, 1, 3600.0))  # type: ignore[arg-type]
    results = []
    for _ in range(200):
        try:
            await enter(guarded, f"{FEDERATION}Hello", context=Context(pem))
        except PluralError as error:
            results.append(error.reason)
    assert set(results) == {"CERTIFICATE_UNKNOWN", "TOO_MANY_CALLS"}
    await enter(guarded, f"{FEDERATION}Hello", context=Context(b"good"))  # the member itself is not slowed
    assert log.results.count("TOO_MANY_CALLS") == 1


@pytest.mark.parametrize("rates", [None, rates_of_members(1.0, 1, 3600.0)])
async def test_a_caller_without_a_readable_certificate_is_refused_as_such(log: Log, tmp_path: Any, rates: Any) -> None:
    now_s = 1_800_000_000.0
    authority = create_authority(tmp_path / "authority", "fed", ["127.0.0.1"], None, now_s)
    readable = authority.issue_member(new_key().public_key(), ClientId("ann"), MemberRole.CLIENT, 3600.0, now_s)
    registry: Any = OneMember()
    audit: Any = log
    guarded = MainDoor(by_certificate(registry), audit, 2, rates)
    for certificate, refusal in ((None, Unidentified), (b"bad", CertificateUnknown), (readable, CertificateUnknown)):
        with pytest.raises(refusal):
            await enter(guarded, f"{FEDERATION}Hello", context=Context(certificate))
    assert log.results == ["UNIDENTIFIED", "CERTIFICATE_UNKNOWN", "CERTIFICATE_UNKNOWN"]


def test_metadata_that_are_missing_or_bytes_name_no_client() -> None:
    context = Context()
    context.invocation_metadata = lambda: None  # type: ignore[assignment, method-assign, return-value]
    assert by_word(context)() == Principal(door.LOCAL, MemberRole.ADMIN)
    with pytest.raises(Unidentified):
        by_word(Context(claimed=b"ann"))  # type: ignore[arg-type]


async def test_calls_that_have_ended_are_not_counted_even_if_they_end_in_another_context(log: Log) -> None:
    guarded = door_of(ANN, log)
    for _ in range(3):
        call = guarded.enter(f"{FEDERATION}GetChunks", Context(), None)
        await asyncio.create_task(call.__aenter__())
        assert guarded._inside[ANN.name] == 1
        await call.__aexit__(None, None, None)
        assert guarded._inside[ANN.name] == 0


# The enrolment port


async def test_the_enrolment_port_answers_two_calls_and_logs_others_once_for_each_network() -> None:
    enrolment = EnrolmentDoor()
    for rpc in ("Join", "GetMembership"):
        async with enrolment.enter(f"/pluralllm.v1.EnrolmentService/{rpc}", Context(), None) as check:
            check()
    with capture_logs() as logs:
        for peer in ("ipv4:192.0.2.1:1", "ipv4:192.0.2.1:2", "ipv4:192.0.2.2:1"):
            for method in ("/pluralllm.v1.EnrolmentService/Renew", f"{FEDERATION}Hello"):
                with pytest.raises(RoleForbids, match="members, on the main port"):
                    await enter(enrolment, method, context=Context(peer=peer))
    assert [entry["peer"] for entry in logs] == ["ipv4:192.0.2.1", "ipv4:192.0.2.2"]


# Names for the audit log


@pytest.mark.parametrize(
    ("request_", "about"),
    [
        (ops.CreateRunRequest(run_id="r"), "runs/r"),
        (ops.StartRunRequest(name="runs/r"), "runs/r"),
        (fed.CommitUpdateRequest(task="runs/r/rounds/1/tasks/train-ann"), "runs/r/rounds/1/tasks/train-ann"),
        (ops.CreateInviteRequest(name="ann"), "members/ann"),
        (ops.RevokeMemberRequest(name="members/ann"), "members/ann"),
        (ops.ListRunsRequest(), ""),
        (None, ""),
    ],
)
def test_an_entry_names_the_run_task_or_member_of_a_call(request_: Any, about: str) -> None:
    assert door.about_of(request_) == about
