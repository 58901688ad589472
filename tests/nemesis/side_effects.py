"""Faults of a coordinator's side effects: its log, its port of metrics, its page and its collector of traces.

The log and the port fail inside the coordinator, while a file says so. The visitors of the page are connections of the nemesis.
"""

import errno
import os
import socket
from pathlib import Path
from typing import Any

from pluralllm.common.process import logs, scrape_port

FAILURES = (
    "PLURALLLM_NEMESIS_FAILURES"  # a folder; while a file with one of the names below is there, this side effect fails
)
LOG, METRICS = "log", "metrics"
LOG_ERRORS = (errno.ENOSPC, errno.EPIPE, errno.EIO)
VISITORS = 8
SMALL_BUFFER = 4096


def fail_on_demand() -> None:
    """Makes the log and the port of metrics of this process fail while the files say so."""
    folder = Path(os.environ[FAILURES])
    put = logs.LogStream._put

    def fail_to_put(stream: logs.LogStream, text: str) -> None:
        if (number := _error(folder / LOG)) is not None:
            raise OSError(number, os.strerror(number))
        put(stream, text)

    def fail_to_serve(_: Any) -> None:
        if (number := _error(folder / METRICS)) is not None:
            raise OSError(number, os.strerror(number))

    stream: Any = logs.LogStream
    server: Any = scrape_port._Server
    stream._put, server.service_actions = fail_to_put, fail_to_serve


def _error(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return None


class Failures:
    """The failures of one coordinator, as the nemesis orders them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def begin(self, name: str, number: int) -> None:
        draft = self.folder / f"{name}.draft"
        draft.write_text(str(number))
        draft.rename(self.folder / name)

    def end(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)


class DeafVisitors:
    """Visitors of a coordinator's page that ask for the events of a run and never read them."""

    def __init__(self, address: str, run: str) -> None:
        host, _, port = address.rpartition(":")
        self._connections = []
        for _ in range(VISITORS):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
            connection.settimeout(5.0)
            self._connections.append(connection)
            connection.connect((host, int(port)))
            connection.sendall(f"GET /api/runs/{run}/events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())

    def leave(self) -> None:
        for connection in self._connections:
            connection.close()
