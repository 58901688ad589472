"""Where Prometheus reads a process's metrics: a port of its own, answered by a thread of its own.

So it answers while the event loop is busy; what it tells of the loop's state is the newest picture that the loop has left.
"""

import contextlib
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, disable_created_metrics, start_http_server

from pluralllm.common.errors.tree import InUse


@contextlib.contextmanager
def scrape_port(listen: str, registry: CollectorRegistry) -> Iterator[str]:
    """Serves /metrics at host:port (0: a free one) until the block ends; yields the address. Raises InUse."""
    disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each counter, which nobody asks for
    host, _, port = listen.rpartition(":")
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), registry)
    except OSError as error:
        raise InUse(what=f"address {listen}", by="another process (or this machine does not have it)") from error
    try:
        yield f"{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
