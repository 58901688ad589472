"""Hostile strangers: they have no certificate, and they connect to a coordinator's ports and send nothing."""

import contextlib
import select
import socket
import time
from collections.abc import Iterator


@contextlib.contextmanager
def silent_connections(address: str, count: int) -> Iterator[list[socket.socket]]:
    """Opens TCP connections on which no handshake begins; closes them at the end of the block."""
    host, _, port = address.rpartition(":")
    with contextlib.ExitStack() as stack:
        connections = []
        for _ in range(count):
            connections.append(stack.enter_context(socket.create_connection((host, int(port)), 20)))
        yield connections


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
