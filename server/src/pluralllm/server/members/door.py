"""The check of every caller's identity and role, before any handler runs and at each message of a stream.

The certificate alone proves the identity if the port uses TLS. In plain text, on loopback only, the call itself names its caller.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Any, Protocol

import structlog

from pluralllm.common.errors.membership import IdentityMismatch, RoleForbids, RunNotShared, TooManyCalls
from pluralllm.common.errors.tree import Internal, OverLimit, PluralError, Unidentified, reason_of
from pluralllm.common.text.printable import printable
from pluralllm.common.trust.certificates import read_certificate
from pluralllm.common.wire.messages import CLIENT_ID_KEY
from pluralllm.common.words.ids import ID_HELP, ClientId, RunId, is_id
from pluralllm.common.words.names import MemberName, RunName
from pluralllm.common.words.roles import MemberRole
from pluralllm.server.members.access import ON_ENROLMENT_PORT, Principal, Rule, check_role
from pluralllm.server.members.attempts import News, network_of
from pluralllm.server.members.audit_log import ACCEPTED, BEGUN, CALLER_GONE, MAX_OBJECT, AuditLog
from pluralllm.server.members.rates import Rates
from pluralllm.server.members.registry import Registry

log = structlog.get_logger()
Context = Any  # grpc.aio.ServicerContext; its type parameters say nothing here
LOCAL = ClientId("local")  # the administrator in plain text
NO_RIGHT = (IdentityMismatch, RunNotShared)  # refusals by handlers, of what the caller has no right to

_caller: ContextVar[Principal] = ContextVar("caller")


def caller() -> Principal:
    """Returns the caller of the current call.

    Raises LookupError, an internal error, if no check has admitted the call.
    """
    return _caller.get()


class Identify(Protocol):
    """A function that finds out who is calling."""

    def __call__(self, context: Context) -> Callable[[], Principal]:
        """Reads the identity that a call presents. The returned function looks up the identity's present rights at each use.

        Both `__call__` and the returned function raise Unidentified, IdentityMismatch or an error about the
        certificate.
        """
        ...


class MainDoor:
    """The check before every call of the main port: identity, rate of the member's calls, role, and number of its open calls.

    If the table in access.py says that the method is audited, the audit log gets an entry before the call begins, and another one
    with its outcome.
    rates: None in plain text, where a caller may choose its name.
    """

    def __init__(self, identify: Identify, audit: AuditLog, calls_per_member: int, rates: Rates | None = None) -> None:
        self._identify = identify
        self._audit = audit
        self._calls_per_member = calls_per_member
        self._rates = rates
        self._news = News()
        self._inside: Counter[ClientId] = Counter()

    @contextlib.asynccontextmanager
    async def enter(self, method: str, context: Context, request: object) -> AsyncIterator[Callable[[], None]]:
        """Admits a call and surrounds its handler. Yields a function that a stream calls at each message to check the role again.

        The repeated check is needed because a certificate may be revoked or expire in the middle of a stream. The entry into
        the block and the yielded function raise RoleForbids if the caller's role may not make the call. They raise
        Unidentified, IdentityMismatch or an error about the certificate if the caller's identity is not accepted. The entry
        also raises TooManyCalls if the member makes this kind of call too often; OverLimit if it has too many open calls.
        """
        rpc, about = method.rpartition("/")[2], about_of(request)
        try:
            who = self._identify(context)
            principal = paced(who, lambda: _claimed(context), self._rates, rpc)
            rule = check_role(principal, method)
        except TooManyCalls as error:
            if self._news.is_news(f"{error.name} {rpc}", time.monotonic()):
                await self._audit.refused(_claimed(context), rpc, about, error)
            raise
        except PluralError as error:
            await self._audit.refused(_claimed(context), rpc, about, error)
            raise
        if self._inside[principal.name] >= self._calls_per_member:
            what = f"calls of {principal.name} at a time"
            limit = OverLimit(what=what, got=self._inside[principal.name] + 1, limit=self._calls_per_member)
            await self._audit.refused(principal, rpc, about, limit)
            raise limit
        self._inside[principal.name] += 1
        token = _caller.set(principal)
        try:

            def check() -> None:
                check_role(who(), method)

            async with self._recorded(rule, principal, rpc, about):
                yield check
        finally:
            self._inside[principal.name] -= 1
            with contextlib.suppress(ValueError):  # an abandoned stream is closed in another context
                _caller.reset(token)

    @contextlib.asynccontextmanager
    async def _recorded(self, rule: Rule, principal: Principal, rpc: str, about: str) -> AsyncIterator[None]:
        """Surrounds a handler, and writes into the audit log what `rule` demands about the call.

        about: the name of the run, task or member that the call concerns.
        """
        if rule.audited:
            await self._audit.record(principal, rpc, about, BEGUN)
        try:
            yield
        except PluralError as error:
            if rule.audited:
                await self._audit.record_outcome(principal, rpc, about, error.reason)
            elif rule.refusals_audited or isinstance(error, NO_RIGHT):
                await self._audit.refused(principal, rpc, about, error)
            raise
        except (asyncio.CancelledError, Exception) as error:
            is_gone = isinstance(error, asyncio.CancelledError)
            if rule.audited or (rule.refusals_audited and not is_gone):
                await self._audit.record_outcome(principal, rpc, about, CALLER_GONE if is_gone else reason_of(Internal))
            raise
        if rule.audited:
            await self._audit.record_outcome(principal, rpc, about, ACCEPTED)


class EnrolmentDoor:
    """The check before every call of the enrolment port. Callers, who have no identity yet, may call Join and GetMembership."""

    def __init__(self) -> None:
        self._news = News()

    @contextlib.asynccontextmanager
    async def enter(self, method: str, context: Context, request: object) -> AsyncIterator[Callable[[], None]]:  # noqa: ARG002
        """Admits a call and surrounds its handler. Raises RoleForbids for a method that this port does not offer.

        The yielded function does nothing, because no call on this port is a stream.
        """
        if method not in ON_ENROLMENT_PORT:
            rpc, peer = method.rpartition("/")[2], peer_of(context)
            if self._news.is_news(peer, time.monotonic()):
                log.warning("enrolment.refused", peer=peer, rpc=rpc, reason=reason_of(RoleForbids))
            raise RoleForbids(name="the caller", role="a stranger", rpc=rpc, allowed="members, on the main port")
        yield lambda: None  # no call on this port is a stream


def paced(
    who: Callable[[], Principal], claimed: Callable[[], Principal | None], rates: Rates | None, rpc: str
) -> Principal:
    """Returns the caller's identity, after its call or request has been counted against its rate.

    who: returns the identity. claimed: returns the one that is presented, accepted or not; None if there is none. rates: None
    for no limits. rpc: the name of a rate. A certificate that is not accepted has a rate of its own, so that it fills no log, and
    takes nothing from the member that it names. Raises TooManyCalls, or the error about the identity.
    """
    now_s = time.monotonic()
    try:
        principal = who()
    except PluralError:
        if rates is not None and (presented := claimed()) is not None:
            rates.count(f"{presented.name}, certificate {presented.serial}", rpc, now_s)
        raise
    if rates is not None:
        rates.count(principal.name, rpc, now_s)
    return principal


def by_certificate(registry: Registry) -> Identify:
    """Returns a function that identifies callers by the client certificate of their TLS connection."""

    def identify(context: Context) -> Callable[[], Principal]:
        pem, claimed = certificate_of(context), claimed_id(context)
        if pem is None:
            raise Unidentified(problem="the connection has no client certificate")

        def who() -> Principal:
            principal = registry.principal(pem)
            if claimed is not None and claimed != principal.name:
                raise IdentityMismatch(claimed=claimed, certificate=principal.name)
            return principal

        return who

    return identify


def by_word(context: Context) -> Callable[[], Principal]:
    """Identifies callers in plain text on loopback, where no certificate proves a name.

    Returns a function that returns the caller's identity. A call that names a client acts as this client; any other call
    acts as an administrator. Raises Unidentified if the name is not a valid id.
    """
    claimed = claimed_id(context)
    if claimed is None:
        return lambda: Principal(LOCAL, MemberRole.ADMIN)
    if not is_id(claimed):
        raise Unidentified(problem=f"{CLIENT_ID_KEY} must be {ID_HELP}")
    return lambda: Principal(ClientId(claimed), MemberRole.CLIENT)


def certificate_of(context: Context) -> bytes | None:
    """Returns the client certificate of a connection as PEM; None if there is no certificate. TLS has checked the signature."""
    certificates: list[bytes] = context.auth_context().get("x509_pem_cert", [])
    return certificates[0] if certificates else None


def claimed_id(context: Context) -> str | None:
    """Returns the client id that a call claims in its metadata; None if the metadata has no client id."""
    for key, value in context.invocation_metadata() or ():
        if key == CLIENT_ID_KEY:
            return value if isinstance(value, str) else ""
    return None


def peer_of(context: Context) -> str:
    """Returns the network that a caller's address counts for, for example ipv4:192.0.2.1 for ipv4:192.0.2.1:5000."""
    return network_of(context.peer())


def about_of(request: object) -> str:
    """Returns the name of the run, task or member that a request concerns, for the audit log; "" if there is no name.

    A name is cut before anything reads it, because nothing has checked its length or its caller yet.
    """
    if run := getattr(request, "run_id", ""):
        about = str(RunName(RunId(run[:MAX_OBJECT])))
    else:
        about = str(getattr(request, "name", "") or getattr(request, "task", "") or "")[:MAX_OBJECT]
        if hasattr(request, "needs_approval"):  # an invite, which has the plain name of a member
            about = str(MemberName(ClientId(about)))
    return printable(about)  # the audit entry is written before the request is refused for such characters


def _claimed(context: Context) -> Principal | None:
    """Returns the identity in the caller's certificate, for a call that is refused.

    Returns None if the caller has no certificate that can be read.
    """
    return claimed_by(certificate_of(context))


def claimed_by(pem: bytes | None) -> Principal | None:
    """Returns the identity in a certificate, which TLS has checked; None if there is no certificate that can be read."""
    if pem is None:
        return None
    try:
        facts = read_certificate(pem)
    except PluralError:
        return None
    return Principal(facts.name, facts.role, facts.serial)
