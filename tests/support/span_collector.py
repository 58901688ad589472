"""A collector of OpenTelemetry spans that receives OTLP over HTTP and writes a file."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@contextlib.contextmanager
def span_collector(kept: Path) -> Iterator[str]:
    """Listens on loopback until the block ends and writes each span as a line of the file. Yields the endpoint's URL."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
            with lock, kept.open("a") as file:
                for resource in request.resource_spans:
                    attributes = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
                    for span in (span for scope in resource.scope_spans for span in scope.spans):
                        facts = {pair.key: str(pair.value).strip() for pair in span.attributes}
                        line = {
                            "service": attributes["service.name"],
                            "name": span.name,
                            "trace": span.trace_id.hex(),
                            "span": span.span_id.hex(),
                            "parent": span.parent_span_id.hex(),
                            "seconds": (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
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
