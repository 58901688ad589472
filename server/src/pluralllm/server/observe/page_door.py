"""The check before every request to the page: it finds out who asks, and whether this member may read the page.

On loopback everybody may read it. From other machines, a request has the identity of a client certificate of its TLS connection,
or of a session that a short-lived link has opened. Both lead to a certificate in the registry, which is asked at each request and
before each event of a stream. A refused request gets a status code and no fact.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import structlog
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pluralllm.common.errors.membership import AwaitingApproval, RoleForbids, RunNotShared, TooManyCalls
from pluralllm.common.errors.root import Refused
from pluralllm.common.errors.storage import StorageFull
from pluralllm.common.errors.tree import PluralError, Unidentified
from pluralllm.common.words.roles import MemberRole
from pluralllm.server.members.access import Principal, check_page
from pluralllm.server.members.attempts import News
from pluralllm.server.members.audit_log import AuditLog
from pluralllm.server.members.door import LOCAL, claimed_by, paced
from pluralllm.server.members.page_links import SESSION_S, Grant, PageLinks
from pluralllm.server.members.rates import PAGE_AUDIT, PAGE_HISTORY, Rates
from pluralllm.server.members.registry import Registry

log = structlog.get_logger()

Who = Callable[[], Principal]  # looks up the reader's present rights at each use

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]", "::1")
CERTIFICATE = "client_certificate"  # key in a request's state: the certificate of its TLS connection as PEM, or None
COOKIE = "__Host-page"  # browsers take a name with this beginning only if it is Secure and for this host alone
OPEN_PATHS = frozenset({"/enter", "/enter.js", "/session", "/page.css", "/icon.svg"})  # they have no facts
MAX_TOKEN_BYTES = 100
MAX_VISITORS = 64
BODY_S = 5.0
READING, OPENING = "ReadPage", "OpenPage"  # actions in the audit log
NO_ENTRY = "This page is for members. Type: pluralllm page, and open the link. Or present your certificate.\n"


class Door(Protocol):
    """The check before every request."""

    hosts: Sequence[str]  # names in a request's Host header that are answered
    open_paths: frozenset[str]  # paths that anybody may ask for
    streams_of_reader: int  # largest number of event streams that one reader has at the same time

    async def enter(self, request: Request) -> Who:
        """Returns a function that returns the reader, and that raises an error when the reader may read no longer.

        Raises the same errors: Unidentified or an error about the certificate, RoleForbids, AwaitingApproval, TooManyCalls.
        """
        ...


class LoopbackDoor:
    """The door of the page on loopback: everybody there reads as an administrator."""

    hosts: Sequence[str] = LOOPBACK_HOSTS
    open_paths: frozenset[str] = frozenset()
    streams_of_reader = MAX_VISITORS  # all readers there are one

    async def enter(self, request: Request) -> Who:  # noqa: ARG002
        """Returns a function that returns the local administrator."""
        return lambda: Principal(LOCAL, MemberRole.ADMIN)


class MembersDoor:
    """The door of the page for members on other machines. `hosts`: the names in a Host header that are answered."""

    open_paths = OPEN_PATHS
    streams_of_reader = 8

    def __init__(
        self, hosts: Sequence[str], registry: Registry, links: PageLinks, audit: AuditLog, rates: Rates
    ) -> None:
        self.hosts = hosts
        self._registry, self._links, self._audit, self._rates = registry, links, audit, rates
        self._news = News()

    async def enter(self, request: Request) -> Who:
        """Identifies the reader by the TLS connection's certificate, or else by the cookie of a session."""
        identify = self._identify(request)

        def who() -> Principal:
            """Returns the reader with its present rights. Raises the errors of `enter`, except TooManyCalls."""
            principal = identify()
            check_page(principal)
            return principal

        try:
            check_page(paced(identify, lambda: self._claimed(request), self._rates, rate_of(request.scope["path"])))
        except TooManyCalls as error:
            if self._news.is_news(f"{error.name} {error.rpc}", time.monotonic()):
                await self._audit.refused(self._claimed(request), READING, "", error)
            raise
        except PluralError as error:
            if (claimed := self._claimed(request)) is not None:  # a stranger must not fill the log
                await self._audit.refused(claimed, READING, "", error)
            raise
        return who

    async def open_session(self, request: Request) -> Response:
        """Redeems a link's token, which is the body of the request, and answers with the cookie of a new session."""
        if not is_from_own_page(request):
            return Response(status_code=403, headers=HEADERS)
        try:
            token = await short_body(request)
            link = self._links.redeem(token)
            if link is None:
                raise Unidentified(problem="there is no such link, or it is used or too old")
            with self._spent_at_success(token, link):
                cookie = await self._new_session(link, request.cookies.get(COOKIE, ""))
        except Refused as error:
            if self._news.is_news(error.reason, time.monotonic()):  # a stranger must not fill the log
                log.warning("page.link_refused", reason=error.reason)
            return refusal(error)
        answer = Response(status_code=204, headers=HEADERS)
        answer.set_cookie(COOKIE, cookie, int(SESSION_S), path="/", secure=True, httponly=True, samesite="strict")
        return answer

    @contextmanager
    def _spent_at_success(self, token: str, link: Grant) -> Iterator[None]:
        """Surrounds the opening of a session; if it fails, the link can be used again, for example when the disk has space."""
        try:
            yield
        except BaseException:
            self._links.give_back(token, link)
            raise

    async def _new_session(self, link: Grant, old_cookie: str) -> str:
        """Opens a session and returns its cookie, which takes the place of `old_cookie` in the browser and here.

        A refusal is in the audit log, under the name of the link's member.
        """
        try:
            principal = self._registry.holder(link.owner.serial)
            check_page(principal)
        except PluralError as error:
            await self._audit.refused(link.owner, OPENING, "", error)
            raise
        await self._audit.record(principal, OPENING, "", "ACCEPTED")
        self._links.end_session(old_cookie)
        return self._links.new_session(link)

    def _claimed(self, request: Request) -> Principal | None:
        """Returns the identity in the certificate or the session of a request, accepted or not; None if it has neither."""
        if (certificate := certificate_of_connection(request)) is not None:
            return claimed_by(certificate)
        session = self._links.session(request.cookies.get(COOKIE, ""))
        return None if session is None else session.owner

    def _identify(self, request: Request) -> Who:
        certificate = certificate_of_connection(request)
        if certificate is not None:
            return lambda: self._registry.principal(certificate)
        cookie = request.cookies.get(COOKIE, "")

        def by_session() -> Principal:
            """Returns the owner of the cookie's session. Raises Unidentified, or an error about the owner's certificate."""
            session = self._links.session(cookie)
            if session is None:
                raise Unidentified(problem="the request has no client certificate and no session")
            return self._registry.holder(session.owner.serial)

        return by_session


class Guard:
    """The middleware that asks the door before every request. A handler finds the reader in `request.state.who`."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it with a refusal. Nothing but HTTP requests passes."""
        if scope["type"] != "http":
            return
        if scope["path"] not in self._door.open_paths:
            try:
                who = await self._door.enter(Request(scope))
            except Refused as error:
                await refusal(error)(scope, receive, send)
                return
            scope.setdefault("state", {}).update(who=who, streams=self._door.streams_of_reader)
        await self._app(scope, receive, send)


def certificate_of_connection(request: Request) -> bytes | None:
    """Returns the client certificate of a request's TLS connection as PEM; None if it has none."""
    certificate: bytes | None = request.scope.get("state", {}).get(CERTIFICATE)
    return certificate


def rate_of(path: str) -> str:
    """Returns the name of the rate against which a request counts. A history and the audit log are dear: they read many rows."""
    if path == "/api/audit":
        return PAGE_AUDIT
    return PAGE_HISTORY if path.endswith("/history") else READING


def hosts_of(names: Iterable[str]) -> tuple[str, ...]:
    """Returns how browsers write these names and IP addresses in a Host header: small letters, and brackets around IPv6."""
    return tuple((f"[{name}]" if ":" in name else name).lower() for name in names)


def refusal(error: Refused) -> Response:
    """Returns the response to a refused request: a status code, and at most how members enter."""
    match error:
        case TooManyCalls():
            return Response(status_code=429, headers=HEADERS)
        case StorageFull():
            return Response(status_code=503, headers=HEADERS)
        case RoleForbids() | RunNotShared() | AwaitingApproval():
            return Response(status_code=403, headers=HEADERS)
        case _:
            return PlainTextResponse(NO_ENTRY, status_code=401, headers=HEADERS)


def is_from_own_page(request: Request) -> bool:
    """Returns whether a script of this page has sent the request. Browsers write both headers; scripts cannot change them.

    The Host header, with which the origin is compared, is one of the door's hosts.
    """
    own = f"https://{request.headers.get('host', '')}"
    return (
        request.headers.get("origin") == own and request.headers.get("sec-fetch-site", "same-origin") == "same-origin"
    )


async def short_body(request: Request) -> str:
    """Returns the body of a request as text. Raises Unidentified for one that is long, slow or no ASCII, and so no token."""
    body = b""
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                body += part
                if len(body) > MAX_TOKEN_BYTES:
                    break
        if len(body) <= MAX_TOKEN_BYTES:
            return body.decode("ascii")
    except (TimeoutError, UnicodeDecodeError):
        pass
    raise Unidentified(problem="the request has no token of a link")
