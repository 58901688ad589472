"""TLS of the page for other machines: the server's certificate, and the client's certificate if it presents one.

A connection counts from its first byte on, not from the end of its handshake, so that silent strangers take no files.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

import structlog

from pluralllm.common.errors.tree import InvalidConfig
from pluralllm.common.process.watched_tasks import WatchedTasks
from pluralllm.server.members.authority import Authority, read_pair
from pluralllm.server.observe.page_door import CERTIFICATE

log = structlog.get_logger()

HANDSHAKE_S = 5.0


class PageTls:
    """The TLS context of the page. It is made again when server.pem has changed; a damaged file changes nothing."""

    def __init__(self, authority: Authority) -> None:
        """Reads the server certificate. Raises InvalidConfig if server.pem is damaged."""
        self._file, self._root_pem = authority.server_file, authority.root_pem
        self._seen_ns = self._file.stat().st_mtime_ns
        self._context = self._read()

    def context(self) -> ssl.SSLContext:
        """Returns the context for a new connection."""
        try:
            seen_ns = self._file.stat().st_mtime_ns
            if seen_ns != self._seen_ns:
                self._seen_ns = seen_ns
                self._context = self._read()
        except (OSError, InvalidConfig) as error:  # an SSLError is an OSError
            log.error("tls.server_certificate_unusable", problem=str(error))
        return self._context

    def _read(self) -> ssl.SSLContext:
        read_pair(self._file)  # says what is wrong with a damaged file
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_OPTIONAL  # one of another authority, or an expired one, ends the handshake
        context.load_verify_locations(cadata=self._root_pem.decode())
        context.load_cert_chain(self._file)
        context.num_tickets = 0  # each connection checks the certificate anew
        context.options |= ssl.OP_NO_TICKET
        return context


class TlsEntrance(asyncio.Protocol):
    """A new connection until the end of its TLS handshake. Then an HTTP connection takes its place."""

    def __init__(
        self,
        *,
        make: Callable[..., Any],
        tls: PageTls,
        tasks: WatchedTasks,
        waiting: set[object],
        limit: int,
        **uvicorn: Any,
    ) -> None:
        """Makes an entrance.

        make: makes the HTTP connection from the arguments of uvicorn. waiting: the connections whose handshake has not ended.
        limit: the largest number of connections with and without a handshake.
        """
        self._make, self._tls, self._tasks = make, tls, tasks
        self._waiting, self._limit, self._uvicorn = waiting, limit, uvicorn
        self._early = b""  # what came with the end of the handshake

    def connection_made(self, transport: Any) -> None:
        """Begins the handshake if there are fewer connections than the limit."""
        if len(self._waiting) + len(self._uvicorn["server_state"].connections) >= self._limit:
            transport.abort()
            return
        transport.pause_reading()  # the handshake reads the first byte
        self._waiting.add(self)
        self._tasks.spawn("a TLS handshake of the page", self._shake_hands(transport))

    def data_received(self, data: bytes) -> None:
        """Keeps data for the HTTP connection."""
        self._early += data

    async def _shake_hands(self, transport: Any) -> None:
        loop = asyncio.get_running_loop()
        try:
            secured: Any = await loop.start_tls(
                transport, self, self._tls.context(), server_side=True, ssl_handshake_timeout=HANDSHAKE_S
            )
        except OSError:  # the caller is no browser, has no acceptable certificate, or is slow
            transport.abort()
            return
        finally:
            self._waiting.discard(self)
        if secured is None or secured.is_closing():
            return
        der = secured.get_extra_info("ssl_object").getpeercert(binary_form=True)
        pem = None if der is None else ssl.DER_cert_to_PEM_cert(der).encode()
        http = self._make(**self._uvicorn)
        http.app_state = {**http.app_state, CERTIFICATE: pem}
        secured.set_protocol(http)
        http.connection_made(secured)
        if self._early:
            http.data_received(self._early)
