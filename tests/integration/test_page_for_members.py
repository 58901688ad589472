"""The page for members over real TLS: by certificate, by a link, and by nobody else."""

import asyncio
import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from structlog.testing import capture_logs
from support.coordinator_harness import BOOTSTRAP, Served, serving, small_spec

from pluralllm.common.errors.tree import NotFound, NotLoopback
from pluralllm.common.trust.certificates import key_to_pem, new_key
from pluralllm.common.trust.identity import Identity, load_identity
from pluralllm.common.words.roles import MemberRole
from pluralllm.operator.remote import Remote
from pluralllm.server.members.authority import create_authority
from pluralllm.server.observe import page as page_module
from pluralllm.server.observe import page_tls
from pluralllm.server.observe.page_door import COOKIE
from pluralllm.server.process.config import ServerConfig

LIMIT_S = 10.0
ANYWHERE = "127.0.0.1:0"


class Visitor:
    """A browser on another machine, which trusts the federation's authority. identity: None for one without a certificate."""

    def __init__(self, served: Served, folder: Path, identity: Identity | None = None) -> None:
        self.host, port = (folder / "state" / "page-remote-address").read_text().split(":")
        self.port = int(port)
        self.context = ssl.create_default_context(cadata=served.registry.authority.root_pem.decode())
        if identity is not None:
            self.context.load_cert_chain(identity.credentials)

    @contextmanager
    def connected(self) -> Iterator[http.client.HTTPSConnection]:
        connection = http.client.HTTPSConnection(self.host, self.port, timeout=LIMIT_S, context=self.context)
        try:
            yield connection
        finally:
            connection.close()

    def _get(self, path: str, method: str, body: str | None, headers: dict[str, str]) -> tuple[int, Any, bytes]:
        with self.connected() as connection:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    async def get(
        self, path: str, *, method: str = "GET", body: str | None = None, **headers: str
    ) -> tuple[int, Any, bytes]:
        return await asyncio.to_thread(self._get, path, method, body, headers)


async def test_members_read_the_page_by_certificate_until_they_are_revoked(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", page_remote_listen=ANYWHERE) as served:
        await served.create("r", small_spec(), start=False)
        await served.create("other", small_spec(), start=False)
        eye = Visitor(served, tmp_path, await served.member("eye", MemberRole.OBSERVER, runs=("r",)))
        ann = Visitor(served, tmp_path, await served.member("ann", MemberRole.CLIENT, "G"))
        root = Visitor(served, tmp_path, load_identity(served.identities / "admin", ""))
        assert (await Visitor(served, tmp_path).get("/api/runs"))[0] == 401
        assert (await ann.get("/api/runs"))[::2] == (403, b"")
        assert [run["name"] for run in json.loads((await eye.get("/api/runs"))[2])["runs"]] == ["r"]
        assert json.loads((await root.get("/api/runs"))[2])["of"] == 2
        assert (await eye.get("/api/runs", Host="evil.example"))[0] == 400

        with eye.connected() as connection:
            await asyncio.to_thread(connection.request, "GET", "/api/runs/r/events")
            stream = await asyncio.to_thread(connection.getresponse)
            assert b"retry" in await asyncio.to_thread(stream.readline)
            await served.registry.revoke(BOOTSTRAP, "eye", "gone")
            await asyncio.to_thread(stream.read)  # to its end
            await asyncio.to_thread(connection.request, "GET", "/api/runs")  # on the same connection
            assert (await asyncio.to_thread(connection.getresponse)).status == 401
        assert (await eye.get("/api/runs"))[0] == 401
        entries = [entry for entry, _ in await served.registry.audit.entries(0, 100)]
        noted = [(entry.actor, entry.result) for entry in entries if entry.action == "ReadPage"]
        assert noted == [("ann", "ROLE_FORBIDS"), ("eye", "CERTIFICATE_REVOKED")]


async def test_a_link_of_the_command_opens_a_session_without_a_certificate(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", page_remote_listen=ANYWHERE) as served:
        await served.create("r", small_spec(), start=False)
        identity = await served.member("eye", MemberRole.OBSERVER)
        remote = Remote.of_member(identity)
        link = await asyncio.to_thread(remote.page_link)
        remote.close()
        address, _, token = link.removeprefix("https://").partition("/enter#")
        visitor = Visitor(served, tmp_path)
        assert address == f"{visitor.host}:{visitor.port}"
        assert (await visitor.get("/enter"))[0] == 200
        own = {"Origin": f"https://{address}"}
        status, headers, _ = await visitor.get("/session", method="POST", body=token, **own)
        cookie = SimpleCookie(headers["set-cookie"])[COOKIE].value
        assert status == 204
        assert (await visitor.get("/session", method="POST", body=token, **own))[0] == 401
        status, _, body = await visitor.get("/api/runs", Cookie=f"{COOKIE}={cookie}")
        assert (status, json.loads(body)["of"]) == (200, 1)
        entries = [entry for entry, _ in await served.registry.audit.entries(0, 100) if entry.actor == "eye"]
        noted = [(entry.action, entry.result) for entry in entries]
        assert noted[-3:] == [("CreatePageLink", "BEGUN"), ("CreatePageLink", "ACCEPTED"), ("OpenPage", "ACCEPTED")]
        assert token not in str(entries)


async def test_a_certificate_of_another_authority_gets_no_connection(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", page_remote_listen=ANYWHERE) as served:
        identity = await served.member("eye", MemberRole.OBSERVER)
        visitor = Visitor(served, tmp_path, identity)
        other = create_authority(tmp_path / "authority", "test", ["x"], None, time.time())
        key = new_key()
        chain = other.issue_member(key.public_key(), "eye", MemberRole.OBSERVER, 3600, time.time())
        path = tmp_path / "other.pem"
        path.write_bytes(key_to_pem(key) + chain)
        visitor.context.load_cert_chain(path)
        with capture_logs() as lines, pytest.raises((ssl.SSLError, ConnectionError)):
            await visitor.get("/api/runs")
        assert [line["peer"] for line in lines if line["event"] == "page.certificate_refused"] == ["ipv4:127.0.0.1"]
        assert (await Visitor(served, tmp_path, identity).get("/api/runs"))[0] == 200


async def test_a_renewed_server_certificate_is_used_at_the_next_connection(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", page_remote_listen=ANYWHERE) as served:
        visitor = Visitor(served, tmp_path)

        def shown() -> Any:
            with visitor.connected() as connection:
                connection.connect()
                return connection.sock.getpeercert(binary_form=True)

        before = await asyncio.to_thread(shown)
        served.registry.authority.renew_server(time.time())
        after = await asyncio.to_thread(shown)
        assert after != before
        served.registry.authority.server_file.write_text("damaged")
        assert await asyncio.to_thread(shown) == after


async def test_strangers_without_a_handshake_take_a_limited_number_of_connections_for_a_limited_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(page_tls, "HANDSHAKE_S", 0.5)
    async with serving(tmp_path / "state", page_remote_listen=ANYWHERE) as served:
        visitor = Visitor(served, tmp_path)

        def times() -> list[float]:
            """Returns how long each of five silent connections stayed open, in seconds."""
            begun = time.monotonic()
            silent = [socket.create_connection((visitor.host, visitor.port), LIMIT_S) for _ in range(5)]
            ended = []
            for connection in silent[::-1]:
                with suppress(ConnectionError):
                    connection.recv(1)
                ended.append(time.monotonic() - begun)
                connection.close()
            return ended

        ended = await asyncio.to_thread(times)
        assert max(ended[:2]) < 0.4, "above the limit"
        assert 0.4 < max(ended) < 5
        assert (await visitor.get("/enter"))[0] == 200, "then others get in"


async def test_neither_a_certificate_nor_a_network_takes_all_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_tls, "MAX_OF_CERTIFICATE", 1)
    monkeypatch.setattr(page_tls, "MAX_OF_NETWORK", 2)
    async with serving(tmp_path / "state", page_remote_listen=ANYWHERE) as served:
        eye = Visitor(served, tmp_path, await served.member("eye", MemberRole.OBSERVER))
        stranger = Visitor(served, tmp_path)

        def open_and_try() -> None:
            with eye.connected() as first, stranger.connected() as other, stranger.connected() as another:
                for connection in (first, other, another):
                    connection.request("GET", "/enter")
                    assert connection.getresponse().read() != b""
                for visitor in (eye, stranger):
                    with pytest.raises((OSError, http.client.HTTPException)):
                        visitor._get("/enter", "GET", None, {})

        await asyncio.to_thread(open_and_try)
        for visitor in (eye, stranger):
            assert await until_in(visitor), "connections that have ended count no longer"


async def until_in(visitor: Visitor) -> bool:
    """Returns whether the page answers a visitor soon; it may need a moment to see that other connections have ended."""
    for _ in range(100):
        with suppress(OSError, http.client.HTTPException):
            return (await visitor.get("/enter"))[0] == 200
        await asyncio.sleep(0.01)
    return False


async def test_a_request_that_comes_with_the_end_of_the_handshake_is_answered(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", page_remote_listen=ANYWHERE) as served:
        visitor = Visitor(served, tmp_path)

        def answered() -> bytes:
            coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = visitor.context.wrap_bio(coming, going, server_hostname=visitor.host)
            with socket.create_connection((visitor.host, visitor.port), LIMIT_S) as connection:
                while True:
                    try:
                        tls.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        connection.sendall(going.read())
                        coming.write(connection.recv(65_536))
                tls.write(f"GET /enter HTTP/1.1\r\nHost: {visitor.host}\r\n\r\n".encode())
                connection.sendall(going.read())  # the handshake's last message and the request at once
                while True:
                    try:
                        return tls.read(15)
                    except ssl.SSLWantReadError:
                        coming.write(connection.recv(65_536))

        assert await asyncio.to_thread(answered) == b"HTTP/1.1 200 OK"


async def test_without_the_setting_there_is_neither_a_port_nor_a_link(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        assert not (tmp_path / "state" / "page-remote-address").exists()
        remote = Remote.of_member(load_identity(served.identities / "admin", "").at(served.address))
        with pytest.raises(NotFound, match="page_remote_listen"):
            await asyncio.to_thread(remote.page_link)
        remote.close()


def test_the_page_for_members_is_refused_at_the_start_without_certificates(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"page_remote_listen needs certificates.*ssh -L"):
        ServerConfig(state_dir=tmp_path, plain_text=True, page_remote_listen="0.0.0.0:7447")
    with pytest.raises(ValidationError, match="page_listen and page_remote_listen have the same port"):
        ServerConfig(state_dir=tmp_path, page_listen="127.0.0.1:7447", page_remote_listen="0.0.0.0:7447")


async def test_without_tls_no_page_is_served_off_loopback(tmp_path: Path) -> None:
    with pytest.raises(NotLoopback):
        async with serving(tmp_path / "state", page_listen="0.0.0.0:0"):
            raise AssertionError
