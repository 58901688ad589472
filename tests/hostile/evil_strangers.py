"""Hostile strangers: they have no certificate; they send nothing, or call from many addresses."""

import asyncio
import contextlib
import itertools
import select
import socket
import time
from collections.abc import AsyncIterator, Iterator


@contextlib.contextmanager
def silent_connections(address: str, count: int) -> Iterator[list[socket.socket]]:
    """Opens TCP connections on which no handshake begins; closes them at the end of the block."""
    host, _, port = address.rpartition(":")
    with contextlib.ExitStack() as stack:
        connections = []
        for _ in range(count):
            connections.append(stack.enter_context(socket.create_connection((host, int(port)), 20)))
        yield connections


@contextlib.asynccontextmanager
async def from_address(source: str, target: str) -> AsyncIterator[str]:
    """Yields the address of a relay, whose connections reach `target` from the loopback address `source`.

    target: address of the coordinator (host:port). Everything that connects to the relay looks like a caller at `source`.
    """
    host, _, port = target.rpartition(":")

    async def passes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        further_reader, further_writer = await asyncio.open_connection(host, int(port), local_addr=(source, 0))
        await asyncio.gather(passes(reader, further_writer), passes(further_reader, writer))

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def dripping(connection: socket.socket, every_s: float, limit_s: float) -> float:
    """Sends the head of a request that never ends, one byte at a time, and reads nothing.

    Returns the time in seconds until the other side closes the connection; `limit_s` if it does not close it before.
    """
    began_s = time.monotonic()
    head = itertools.chain(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ", itertools.repeat(ord("a")))
    while time.monotonic() - began_s < limit_s:
        connection.setblocking(True)
        try:
            connection.sendall(bytes([next(head)]))
        except ConnectionError:
            return time.monotonic() - began_s
        if seconds_until_closed(connection, every_s) < every_s:
            return time.monotonic() - began_s
    return limit_s


def open_among(connections: list[socket.socket]) -> int:
    """Returns the number of connections that the other side has not closed."""
    return sum(not _is_closed(connection) for connection in connections)


def seconds_until_closed(connection: socket.socket, limit_s: float) -> float:
    """Returns the time in seconds until the other side closes a connection; `limit_s` if it does not close it before."""
    began_s = time.monotonic()
    while (left_s := began_s + limit_s - time.monotonic()) > 0:
        poller = select.poll()  # not select(), which fails for files with high numbers
        poller.register(connection, select.POLLIN)
        if poller.poll(left_s * 1000) and _is_closed(connection):
            return time.monotonic() - began_s
    return limit_s


def _is_closed(connection: socket.socket) -> bool:
    """Reads what the other side has sent, and returns whether it has closed the connection."""
    connection.setblocking(False)
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return True
