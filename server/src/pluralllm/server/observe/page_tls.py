"""TLS of the page for other machines: the server's certificate, and the client's certificate if it presents one.

A connection counts from its first byte on, not from the end of its handshake, so that silent strangers take no files. Each
certificate, and each network for the connections without one, has a limited number of connections, so that none keeps others out.
"""

import asyncio
import hashlib
import ssl
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog

from pluralllm.common.process.watched_tasks import WatchedTasks
from pluralllm.server.members.attempts import News, network_of
from pluralllm.server.members.authority import Authority, read_pair
from pluralllm.server.members.tls import ServerFile
from pluralllm.server.observe.page_door import CERTIFICATE

log = structlog.get_logger()

HANDSHAKE_S = 5.0
SHUTDOWN_S = 1.0  # then a connection ends whose other side does not confirm its end
MAX_OF_CERTIFICATE = 16  # a browser opens six
MAX_OF_NETWORK = 32  # connections without a certificate, or before the end of their handshake


class PageTls:
    """The TLS context of the page. It is made again when server.pem has changed; a damaged file changes nothing."""

    def __init__(self, authority: Authority) -> None:
        """Reads the server certificate. Raises InvalidConfig if server.pem is damaged."""
        self._path, self._root_pem = authority.server_file, authority.root_pem
        self._file = ServerFile(self._path, self._read)
        self._context = self._read()
        self._news = News()

    def context(self) -> ssl.SSLContext:
        """Returns the context for a new connection."""
        if (changed := self._file.news()) is not None:
            self._context = changed
        return self._context

    def log_refusal(self, network: str, error: OSError) -> None:
        """Logs that a client certificate was refused, once a minute for each network. Other handshakes that fail are no news."""
        if isinstance(error, ssl.SSLCertVerificationError) and self._news.is_news(network, time.monotonic()):
            log.warning("page.certificate_refused", peer=network, problem=error.verify_message)

    def _read(self) -> ssl.SSLContext:
        read_pair(self._path)  # says what is wrong with a damaged file
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_OPTIONAL  # one of another authority, or an expired one, ends the handshake
        context.load_verify_locations(cadata=self._root_pem.decode())
        context.load_cert_chain(self._path)
        context.num_tickets = 0  # each connection checks the certificate anew
        context.options |= ssl.OP_NO_TICKET
        return context


class OpenConnections:
    """The open connections, counted by holder: a client certificate, or the network of a peer without one."""

    def __init__(self, max_connections: int) -> None:
        """Makes an empty count. max_connections: the largest number of connections of all holders together."""
        self._max_connections = max_connections
        self._of: Counter[str] = Counter()

    def add(self, holder: str, most: int) -> bool:
        """Counts a connection of the holder and returns True; False, without an effect, if it has `most` or all are taken."""
        if self._of[holder] >= most or self._of.total() >= self._max_connections:
            return False
        self._of[holder] += 1
        return True

    def move(self, holder: str, to: str, most: int) -> bool:
        """Counts a connection of `holder` for `to` from now on and returns True; False, without an effect, if that has `most`."""
        self.remove(holder)
        if self.add(to, most):
            return True
        self._of[holder] += 1
        return False

    def remove(self, holder: str) -> None:
        """Ends the count of a connection of the holder."""
        self._of[holder] -= 1
        self._of = +self._of  # forgets holders without connections, so that strangers fill no memory


class TlsEntrance(asyncio.Protocol):
    """A new connection until the end of its TLS handshake. Then an HTTP connection takes its place."""

    def __init__(
        self,
        *,
        make_connection: Callable[..., Any],
        tls: PageTls,
        tasks: WatchedTasks,
        opened: OpenConnections,
        **uvicorn: Any,
    ) -> None:
        """Makes an entrance.

        make_connection: makes the HTTP connection from the arguments of uvicorn. opened: the connections of the whole page, with
        and without a handshake.
        """
        self._make_connection, self._tls, self._tasks = make_connection, tls, tasks
        self._opened, self._uvicorn = opened, uvicorn
        self._early = b""  # what came with the end of the handshake

    def connection_made(self, transport: Any) -> None:
        """Begins the handshake if neither the page nor the peer's network has too many connections."""
        network = network_of_peer(transport.get_extra_info("peername"))
        if not self._opened.add(network, MAX_OF_NETWORK):
            transport.abort()
            return
        transport.pause_reading()  # the handshake reads the first byte
        self._tasks.spawn("a TLS handshake of the page", self._enter(transport, network))

    def data_received(self, data: bytes) -> None:
        """Keeps data for the HTTP connection."""
        self._early += data

    async def _enter(self, transport: Any, network: str) -> None:
        holder = network
        try:
            secured = await self._secured(transport, network)
            if secured is None or secured.is_closing():
                return
            der = secured.get_extra_info("ssl_object").getpeercert(binary_form=True)
            if der is not None:
                by_certificate = f"certificate {hashlib.sha256(der).hexdigest()}"
                if not self._opened.move(network, by_certificate, MAX_OF_CERTIFICATE):
                    secured.abort()
                    return
                holder = by_certificate
            http = self._make_connection(**self._uvicorn)
            http.on_lost, holder = partial(self._opened.remove, holder), ""
            self._hand_over(secured, http, None if der is None else ssl.DER_cert_to_PEM_cert(der).encode())
        finally:
            if holder:
                self._opened.remove(holder)

    async def _secured(self, transport: Any, network: str) -> Any:
        """Does the handshake and returns the secured transport; None if the handshake fails."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.start_tls(
                transport,
                self,
                self._tls.context(),
                server_side=True,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
        except OSError as error:  # the caller is no browser, has no acceptable certificate, or is slow
            transport.abort()
            self._tls.log_refusal(network, error)
            return None

    def _hand_over(self, secured: Any, http: Any, certificate: bytes | None) -> None:
        http.app_state = {**http.app_state, CERTIFICATE: certificate}
        secured.set_protocol(http)
        http.connection_made(secured)
        if self._early:
            http.data_received(self._early)


def network_of_peer(address: tuple[Any, ...] | None) -> str:
    """Returns the network that a peer's socket address counts for, as `network_of` does. address: host, port and more."""
    if not address:  # it is gone already
        return "unknown"
    return network_of(f"{'ipv6' if ':' in address[0] else 'ipv4'}:[{address[0]}]:{address[1]}")
