"""The port on which Prometheus reads a process's metrics. A separate thread answers on this port.

Metrics can therefore be read while the event loop is busy. During that time, a gauge that the event loop sets shows its last
value.
"""

import contextlib
import socket
import threading
from collections.abc import Iterator
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog
from prometheus_client import CollectorRegistry, disable_created_metrics, make_wsgi_app

from pluralllm.common.process.listening import why_not_open
from pluralllm.common.words.addresses import join_address, split_address

log = structlog.get_logger()

MAX_CONNECTIONS = 16  # each has a thread and an open file
AGAIN_S = 1.0  # after a failure of the port
SILENCE_S = 5.0  # then a connection that sends nothing is closed
REQUEST_S = 15.0  # then a connection is closed, even if it sends or reads a byte now and then


class _Handler(WSGIRequestHandler):
    """Answers one request and logs nothing."""

    timeout = SILENCE_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in the base class
        pass


class _Server(ThreadingMixIn, WSGIServer):
    """An HTTP server with a thread for each connection, for at most MAX_CONNECTIONS connections at a time."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *arguments: Any) -> None:
        self._slots = threading.Semaphore(MAX_CONNECTIONS)
        self._stopping = threading.Event()
        super().__init__(*arguments)

    def serve(self) -> None:
        """Serves until `stop` is called, whatever happens to single connections."""
        while not self._stopping.is_set():
            try:
                self.serve_forever()
            except Exception:
                log.exception("metrics.port_failed")
                self._stopping.wait(AGAIN_S)

    def stop(self) -> None:
        self._stopping.set()
        self.shutdown()

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 - the base class calls it
        """Returns whether a slot is free, and takes it. The base class closes the connection if there is none."""
        return self._slots.acquire(blocking=False)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts the thread of a connection; frees the slot if there can be no thread."""
        try:
            super().process_request(request, client_address)
        except RuntimeError:
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answers one connection, for REQUEST_S at most, and frees its slot."""
        limit = threading.Timer(REQUEST_S, _hang_up, [request])
        limit.daemon = True
        try:
            limit.start()
            super().process_request_thread(request, client_address)
        finally:
            limit.cancel()
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Does nothing: a caller that was silent or has gone is no error of this process."""


def _hang_up(connection: socket.socket) -> None:
    """Ends a connection that another thread reads or writes; that thread then sees its end."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def scrape_port(listen: str, registry: CollectorRegistry) -> Iterator[str]:
    """Serves /metrics until the block ends, and yields the address host:port.

    listen: host:port; port 0 takes a free port. registry: the metrics to serve. Raises InUse or InvalidArgument if the port
    cannot be opened.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call] # they would be a second, useless series for each counter
    host, port = split_address(listen)
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        kind: type[_Server] = type("_Server", (_Server,), {"address_family": family})
        server = make_server(str(address[0]), port, make_wsgi_app(registry), kind, _Handler)
    except OSError as error:
        raise why_not_open(listen) from error
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield join_address(host, server.server_port)
    finally:
        server.stop()
        server.server_close()
        thread.join(5)
