"""Who is calling, and whether they may: the one place that decides it, before any handler runs and at each message of a stream.

With certificates the identity is the certificate's and nothing else. In plain text, on loopback only, it is what the call says.
"""

import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Any, Protocol

import structlog

from pluralllm.common.errors.membership import IdentityMismatch, RoleForbids
from pluralllm.common.errors.tree import OverLimit, PluralError, Unidentified, reason_of
from pluralllm.common.trust.certificates import read_certificate
from pluralllm.common.wire.messages import CLIENT_ID_KEY
from pluralllm.common.words.ids import ID_HELP, ClientId, RunId, is_id
from pluralllm.common.words.names import RunName
from pluralllm.common.words.roles import MemberRole
from pluralllm.server.members.access import ON_ENROLMENT_PORT, Principal, check_role
from pluralllm.server.members.attempts import News
from pluralllm.server.members.audit_log import AuditLog
from pluralllm.server.members.registry import Registry

log = structlog.get_logger()
Context = Any  # grpc.aio.ServicerContext; its type parameters say nothing here
LOCAL = ClientId("local")  # who steers in plain text

_caller: ContextVar[Principal] = ContextVar("caller")


def caller() -> Principal:
    """Whoever the call being answered is from. Without a door that let them in there is none: LookupError, an incident."""
    return _caller.get()


class Identify(Protocol):
    def __call__(self, context: Context) -> Callable[[], Principal]:
        """Reads who a call says it is, once; what is returned looks up who that is by now, as often as wanted.

        Both raise Unidentified, IdentityMismatch or a leaf about the certificate.
        """
        ...


class Door:
    """Lets a call in: identity, role, a bound on calls at a time; what steers is audited before it is done."""

    def __init__(self, identify: Identify, audit: AuditLog, calls_per_member: int) -> None:
        self._identify = identify
        self._audit = audit
        self._calls_per_member = calls_per_member
        self._inside: Counter[ClientId] = Counter()

    @contextlib.asynccontextmanager
    async def enter(self, method: str, context: Context, request: object) -> AsyncIterator[Callable[[], None]]:
        """Around the handler. Gives what looks again in the middle of a stream: a certificate may be revoked or expire meanwhile.

        Both raise what identity and role refuse, this OverLimit too.
        """
        rpc, about = method.rpartition("/")[2], about_of(request)
        try:
            who = self._identify(context)
            principal = who()
            rule = check_role(principal, method)
        except PluralError as error:
            await self._audit.refused(_claimed(context), rpc, about, error)
            raise
        if self._inside[principal.name] >= self._calls_per_member:
            what = f"calls of {principal.name} at a time"
            raise OverLimit(what=what, got=self._inside[principal.name] + 1, limit=self._calls_per_member)
        self._inside[principal.name] += 1
        token = _caller.set(principal)
        try:
            if rule.audited:
                await self._audit.record(principal, rpc, about)

            def check() -> None:
                check_role(who(), method)

            yield check
        except IdentityMismatch as error:  # found by the handler in a message
            await self._audit.refused(principal, rpc, about, error)
            raise
        finally:
            self._inside[principal.name] -= 1
            with contextlib.suppress(ValueError):  # a stream that is given up is closed in another context
                _caller.reset(token)


class EnrolmentDoor:
    """The enrolment port's: whoever knocks has no identity yet, and may ask for two things."""

    def __init__(self) -> None:
        self._news = News()

    @contextlib.asynccontextmanager
    async def enter(self, method: str, context: Context, request: object) -> AsyncIterator[Callable[[], None]]:  # noqa: ARG002
        if method not in ON_ENROLMENT_PORT:
            rpc, peer = method.rpartition("/")[2], peer_of(context)
            if self._news.is_news(peer, time.monotonic()):
                log.warning("enrolment.refused", peer=peer, rpc=rpc, reason=reason_of(RoleForbids))
            raise RoleForbids(name="the caller", role="a stranger", rpc=rpc, allowed="members, on the main port")
        yield lambda: None  # nothing on this port is a stream


def by_certificate(registry: Registry) -> Identify:
    """Mutual TLS: the certificate of the connection, looked up now."""

    def identify(context: Context) -> Callable[[], Principal]:
        pem, said = certificate_of(context), said_by(context)
        if pem is None:
            raise Unidentified(problem="the connection has no client certificate")

        def who() -> Principal:
            principal = registry.principal(pem)
            if said is not None and said != principal.name:
                raise IdentityMismatch(claimed=said, certificate=principal.name)
            return principal

        return who

    return identify


def by_word(context: Context) -> Callable[[], Principal]:
    """Plain text on loopback: who says it is a client is that client, anybody else may steer."""
    said = said_by(context)
    if said is None:
        return lambda: Principal(LOCAL, MemberRole.ADMIN)
    if not is_id(said):
        raise Unidentified(problem=f"{CLIENT_ID_KEY} must be {ID_HELP}")
    return lambda: Principal(ClientId(said), MemberRole.CLIENT)


def certificate_of(context: Context) -> bytes | None:
    """The peer's certificate (PEM), its signature checked by TLS."""
    found: list[bytes] = context.auth_context().get("x509_pem_cert", [])
    return found[0] if found else None


def said_by(context: Context) -> str | None:
    """The id a call claims in its metadata."""
    for key, value in context.invocation_metadata() or ():
        if key == CLIENT_ID_KEY:
            return value if isinstance(value, str) else ""
    return None


def peer_of(context: Context) -> str:
    """ipv4:192.0.2.1:5000 -> ipv4:192.0.2.1"""
    peer: str = context.peer()
    return peer.rpartition(":")[0] or peer


def about_of(request: object) -> str:
    """What a request is about, for the audit log: the resource it names."""
    if run := getattr(request, "run_id", ""):
        about = str(RunName(RunId(run)))
    else:
        about = str(getattr(request, "name", "") or getattr(request, "task", "") or "")
    return about.replace("\0", "\ufffd")  # it is audited before the request is refused for it


def _claimed(context: Context) -> Principal | None:
    """The name in a certificate that was refused: TLS has checked who signed it."""
    pem = certificate_of(context)
    if pem is None:
        return None
    try:
        facts = read_certificate(pem)
    except PluralError:
        return None
    return Principal(facts.name, facts.role, facts.serial)
