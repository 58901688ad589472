"""The port on which Prometheus reads a process's metrics. A separate thread answers on this port.

Metrics can therefore be read while the event loop is busy. During that time, a gauge that the event loop sets shows its last
value.
"""

import contextlib
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, disable_created_metrics, start_http_server

from pluralllm.common.errors.tree import InUse


@contextlib.contextmanager
def scrape_port(listen: str, registry: CollectorRegistry) -> Iterator[str]:
    """Serves /metrics until the block ends, and yields the address host:port.

    listen: host:port; port 0 takes a free port. registry: the metrics to serve. Raises InUse if the address cannot be used.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call] # they would be a second, useless series for each counter
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
