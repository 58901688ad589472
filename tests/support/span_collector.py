"""A collector of OpenTelemetry spans: OTLP over HTTP, into a file."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@contextlib.contextmanager
def span_collector(kept: Path) -> Iterator[str]:
    """Listens on loopback until the block ends; a span is a line of the file. Its endpoint."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
            with lock, kept.open("a") as file:
                for resource in request.resource_spans:
                    of = {each.key: each.value.string_value for each in resource.resource.attributes}
                    for found in (each for scope in resource.scope_spans for each in scope.spans):
                        facts = {each.key: str(each.value).strip() for each in found.attributes}
                        line = {
                            "service": of["service.name"],
                            "name": found.name,
                            "trace": found.trace_id.hex(),
                            "span": found.span_id.hex(),
                            "parent": found.parent_span_id.hex(),
                            "seconds": (found.end_time_unix_nano - found.start_time_unix_nano) / 1e9,
                            "facts": facts,
                        }
                        file.write(json.dumps(line) + "\n")
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    kept.touch()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
