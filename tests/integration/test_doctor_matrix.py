"""Situation by situation: what a doctor's lines say, and what the daemon is told when it calls.

Both must name the same cause. Real sockets and real TLS; only the names that a proxy resolves are made up.
"""

import asyncio
import base64
import contextlib
import datetime
import http.server
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.connect_proxy import connect_proxy
from support.coordinator_harness import BOOTSTRAP, Served, serving

from pluralllm.client.daemon.renewal import Renewal
from pluralllm.client.joining.connection_checks import connection_checks
from pluralllm.client.joining.joining import join
from pluralllm.client.link.tasks import Introduction
from pluralllm.client.link.transport import Transport
from pluralllm.common.errors.membership import ForeignAuthority, WrongHost
from pluralllm.common.errors.tree import PluralError, ProxyFailed, Unreachable, WrongPort
from pluralllm.common.process.clock import SystemClock
from pluralllm.common.process.console import Check
from pluralllm.common.process.environment import proxies_of
from pluralllm.common.process.proxies import DIRECT, Proxies
from pluralllm.common.trust.identity import Identity
from pluralllm.common.trust.invite import Invite
from pluralllm.common.words.addresses import split_address
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.members.authority import create_authority
from pluralllm.server.members.invite_order import InviteOrder

NAME = "coordinator.invalid"  # no resolver knows it, so only a proxy can reach it
GROUP = "group of ann"
MAIN, ENROLMENT, STANDING = "main port, TLS", "enrolment port, TLS", "standing"
CLOCK, PROTOCOL, RESOLUTION = "clock", "protocol", "name resolution"
BEHIND_ENROLMENT = {ENROLMENT, STANDING, CLOCK, PROTOCOL}


@dataclass(frozen=True)
class World:
    """A coordinator, its member ann, and other servers that ann may meet by mistake."""

    served: Served
    identity: Identity
    web: str  # address of a web server without TLS
    other_tls: str  # address of a server with a certificate of another authority
    other_name: str  # an address for which this federation's server certificate is not
    closed: str  # an address at which nothing listens

    def at(self, main: str | None = None, enrolment: str | None = None, proxies: Proxies = DIRECT) -> Identity:
        return self.identity.at(main, enrolment).through(proxies)

    def named(self, url: str) -> Identity:
        """Returns the identity with the coordinator at the name that only a proxy knows."""
        main, enrolment = self.reaches
        return self.at(main, enrolment, Proxies(url, (), "test"))

    @property
    def reaches(self) -> dict[str, str]:
        """The real addresses of the main port and of the enrolment port, by the addresses that only a proxy can reach."""
        addresses = (self.served.address, self.served.enrolment_address)
        return {f"{NAME}:{split_address(address)[1]}": address for address in addresses}


@contextlib.asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    own = create_authority(folder / "state" / "authority", "test", ["127.0.0.1", NAME], None, time.time())
    other = create_authority(folder / "other", "other", ["127.0.0.1"], None, time.time())
    async with serving(folder / "state", SystemClock()) as served:
        member = await served.member("ann", MemberRole.CLIENT, GROUP)
        identity = member.at(enrolment=served.enrolment_address)
        with (
            nobody() as closed,
            web_server(None) as web,
            web_server(other.server_file) as other_tls,
            web_server(own.server_file, "127.0.0.2") as other_name,
        ):
            yield World(served, identity, web, other_tls, other_name, closed)


@contextlib.contextmanager
def nobody() -> Iterator[str]:
    """Keeps a port for itself and does not listen on it."""
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{kept.getsockname()[1]}"


class Web(http.server.BaseHTTPRequestHandler):
    """A web server that has no page and logs nothing."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in the base class
        pass


@contextlib.contextmanager
def web_server(certificate: Path | None, host: str = "127.0.0.1") -> Iterator[str]:
    server = http.server.ThreadingHTTPServer((host, 0), Web)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


async def lines_of(identity: Identity) -> dict[str, Check]:
    checks = await asyncio.to_thread(lambda: list(connection_checks(lambda: identity)))
    return {check.name: check for check in checks}


async def told(identity: Identity) -> Exception | None:
    """Returns the error that the daemon acts on after its first call; None if the call succeeds."""
    transport = Transport.of_member(identity)
    try:
        await transport.hello(Introduction(GROUP, GroupRole.TRAIN, 50))
    except PluralError as error:
        return await Renewal(identity, transport).true_cause(error)
    finally:
        await transport.close()
    return None


@dataclass(frozen=True)
class Situation:
    """A situation, the doctor's lines that fail in it with a part of their text, and the error that the daemon gets."""

    name: str
    identity: Callable[[World], Identity]
    failing: dict[str, str]
    daemon: type[PluralError] | None
    daemon_text: str = ""


SITUATIONS = [
    Situation("all is well", lambda here: here.at(), {}, None),
    Situation(
        "the main port's address is the enrolment port",
        lambda here: here.at(main=here.served.enrolment_address),
        {MAIN: " is not the coordinator's main port: it is the enrolment port"},
        WrongPort,
        "it is the enrolment port, which does not answer Hello",
    ),
    Situation(
        "the enrolment address is the main port",
        lambda here: here.at(enrolment=here.served.address),
        dict.fromkeys(BEHIND_ENROLMENT, "is not the coordinator's enrolment port: it demands a member's certificate"),
        None,
    ),
    Situation(
        "the main port's address is a web server, such as the metrics",
        lambda here: here.at(main=here.web),
        {
            MAIN: "is not the coordinator's main port: what answers there does not speak TLS",
            STANDING: "does not speak TLS",
        },
        WrongPort,
        "does not speak TLS",
    ),
    Situation(
        "the enrolment address is a web server",
        lambda here: here.at(enrolment=here.web),
        dict.fromkeys(
            BEHIND_ENROLMENT, "is not the coordinator's enrolment port: what answers there does not speak TLS"
        ),
        None,
    ),
    Situation(
        "another server with TLS",
        lambda here: here.at(main=here.other_tls),
        {MAIN: "is not the coordinator this member was invited by", STANDING: "is not the coordinator"},
        ForeignAuthority,
    ),
    Situation(
        "nothing listens at the main port",
        lambda here: here.at(main=here.closed),
        {MAIN: "Connection refused", STANDING: "could not be asked"},
        Unreachable,
        "Connection refused",
    ),
    Situation(
        "a name that the certificate is not for",
        lambda here: here.at(main=here.other_name),
        {MAIN: "is not for 127.0.0.2 but for ", STANDING: "is not for 127.0.0.2"},
        WrongHost,
    ),
    Situation(
        "a name that nobody knows",
        lambda here: here.at(main=f"{NAME}:1"),
        {RESOLUTION: f"the name {NAME} is not known", MAIN: NAME, STANDING: "could not be asked"},
        Unreachable,
    ),
]


@pytest.mark.timeout(120)
async def test_the_doctor_and_the_daemon_name_the_same_cause(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        for situation in SITUATIONS:
            await check(situation, here)


async def check(situation: Situation, here: World) -> None:
    identity = situation.identity(here)
    lines = await lines_of(identity)
    failing = {name: line.result for name, line in lines.items() if not line.ok}
    assert failing.keys() == situation.failing.keys(), f"{situation.name}: {failing}"
    for name, text in situation.failing.items():
        assert text in failing[name], f"{situation.name}: {name}: {failing[name]}"
        assert lines[name].fix, f"{situation.name}: {name} has no fix"
    error = await told(identity)
    assert (None if error is None else type(error)) == situation.daemon, f"{situation.name}: {error}"
    assert situation.daemon_text in str(error or ""), situation.name


@pytest.mark.timeout(120)
async def test_behind_a_proxy_the_doctor_and_the_daemon_go_the_same_way(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        with connect_proxy(password="ann:secret", reaches=here.reaches) as proxy:
            url = f"http://ann:secret@{proxy.address}"
            await check(Situation("a proxy that connects", lambda here: here.named(url), {}, None), here)
            lines = await lines_of(here.named(url))
            assert f"through {proxy.address}, {NAME}" in lines["proxy"].result
            assert f"the proxy {proxy.address} resolves it" in lines["name resolution"].result
            assert "secret" not in str(lines)
            assert set(proxy.asked) == here.reaches.keys()
            without = dict.fromkeys((MAIN, *BEHIND_ENROLMENT), "407 Proxy Authentication Required; it needs a user")
            await check(refused("a proxy that wants a password", proxy.url, without), here)
            wrong = dict.fromkeys((MAIN, *BEHIND_ENROLMENT), "it does not accept the user and the password in its URL")
            await check(refused("a wrong password", f"http://ann:x@{proxy.address}", wrong), here)
        only_main = dict([next(iter(here.reaches.items()))])
        with connect_proxy(reaches=only_main) as proxy:
            behind = dict.fromkeys(BEHIND_ENROLMENT, f"The proxy {proxy.address} does not connect to {NAME}")
            await check(Situation("a proxy for one port", lambda here: here.named(proxy.url), behind, None), here)
        with connect_proxy(refuses="200 OK\r\nContent-Length: 5\r\n\r\nhello") as proxy:
            page = dict.fromkeys((MAIN, *BEHIND_ENROLMENT), "it answers 200 and sends something of its own")
            await check(refused("a login page", proxy.url, page), here)
        with connect_proxy(refuses="403 Forbidden") as proxy:
            forbidden = dict.fromkeys(
                (MAIN, *BEHIND_ENROLMENT), f"The proxy {proxy.address} does not connect to {NAME}"
            )
            await check(refused("a proxy that refuses", proxy.url, forbidden), here)
        dead = dict.fromkeys((MAIN, *BEHIND_ENROLMENT), f"The proxy {here.closed} does not connect")
        await check(refused("a proxy that is off", f"http://{here.closed}", dead), here)
        web = dict.fromkeys((MAIN, *BEHIND_ENROLMENT), f"The proxy {here.web} does not connect")
        await check(refused("a proxy that is a web server", f"http://{here.web}", web), here)


def refused(name: str, url: str, failing: dict[str, str]) -> Situation:
    return Situation(name, lambda here: here.named(url), failing, ProxyFailed)


async def test_this_machine_is_reached_directly_whatever_the_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as here:
        with connect_proxy(refuses="403 Forbidden") as proxy:
            monkeypatch.setenv("https_proxy", proxy.url)
            identity = here.at(proxies=proxies_of(None))
            assert identity.proxies.to(f"{NAME}:1") is not None
            await check(Situation("a coordinator on this machine", lambda _: identity, {}, None), here)
            assert (await lines_of(identity))["proxy"].result == "none: connections are direct"
            assert proxy.asked == []


@pytest.mark.timeout(120)
async def test_who_joins_goes_the_same_way_and_is_told_the_same(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        order = InviteOrder(name="ben", role=MemberRole.CLIENT, group="group of ben", group_role=GroupRole.TRAIN)
        _, token = await here.served.registry.invite(BOOTSTRAP, order)
        main, enrolment = here.reaches
        invite = Invite(
            federation="test",
            name="ben",
            role=MemberRole.CLIENT,
            group="group of ben",
            coordinator=main,
            enrolment=enrolment,
            authority=base64.b64encode(here.served.registry.authority.root_der).decode(),
            token=token,
            expires=datetime.datetime.now(tz=datetime.UTC),
        )

        async def joining(address: str, url: str = "") -> Identity:
            at, folder = invite.model_copy(update={"enrolment": address}), tmp_path / "ben"
            proxies = Proxies(url, (), "test")
            identity, _ = await asyncio.to_thread(join, at, folder, "", frozenset({MemberRole.CLIENT}), proxies)
            return identity

        with pytest.raises(WrongPort, match="it demands a member's certificate, as the main port does"):
            await joining(here.served.address)
        with pytest.raises(WrongPort, match="does not speak TLS"):
            await joining(here.web)
        with connect_proxy(refuses="403 Forbidden") as proxy, pytest.raises(ProxyFailed, match="403 Forbidden"):
            await joining(enrolment, proxy.url)
        with connect_proxy(reaches=here.reaches) as proxy:
            assert (await joining(enrolment, proxy.url)).membership.name == "ben"
            assert proxy.asked == [enrolment]
