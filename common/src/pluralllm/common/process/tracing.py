"""Traces of rounds with OpenTelemetry. The spans hold names, counts and times, and never private content.

Tracing is off unless an endpoint is configured. The ids of a round's trace and of its first span are computed from the names
of run and round. So every process adds its spans to the same trace. Clients read the ids from the `traceparent` of their
tasks. A coordinator that was restarted computes the same ids again.
Source: W3C Trace Context, section 3.2 (traceparent); OTLP over HTTP.
"""

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pluralllm.common.errors.root import PluralError
from pluralllm.common.errors.tree import ExtraMissing
from pluralllm.common.words.addresses import is_loopback

TRACER = trace.get_tracer("pluralllm")
NS = 1_000_000_000
LAST_SPANS_S = 3.0  # for the last spans when the process ends; a collector that hangs would hold it for half a minute
# Ids of the trace and the span that is being made; None draws them at random.
_fixed_ids: ContextVar[tuple[int, int] | None] = ContextVar("fixed_ids", default=None)

Fact = str | int | float


def traceparent(key: str) -> str:
    """Returns the traceparent header for a round, the same in every process. key: the text that identifies the round."""
    trace_id, span_id = _ids(key)
    return f"00-{trace_id:032x}-{span_id:016x}-01"


def context_of(parent: str) -> Context:
    """Returns the parent context encoded in a traceparent header; an empty context if the header is empty or malformed."""
    return TraceContextTextMapPropagator().extract({"traceparent": parent}, Context())


def round_context(key: str) -> Context:
    """Returns the parent context for the spans of a round. key: the text that identifies the round."""
    trace_id, span_id = _ids(key)
    first = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return trace.set_span_in_context(NonRecordingSpan(first), Context())


@contextlib.contextmanager
def span(name: str, context: Context | None = None, **facts: Fact) -> Iterator[None]:
    """Records a span while the `with` block runs. The span's parent is `context`, or the current span if `context` is None.

    facts: attributes of the span. If the block raises an error, the span records the error's code but not the error's text.
    """
    with TRACER.start_as_current_span(
        name, context, attributes=facts, record_exception=False, set_status_on_exception=False
    ) as made:
        try:
            yield
        except BaseException as error:
            made.set_attribute("error.type", error.reason if isinstance(error, PluralError) else type(error).__name__)
            raise


def tell(name: str, context: Context, began_s: float, ended_s: float, **facts: Fact) -> None:
    """Records a span for work that has ended already. `began_s` and `ended_s` are seconds since the epoch.

    context: the span's parent. facts: attributes of the span.
    """
    made = TRACER.start_span(name, context, attributes=facts, start_time=round(began_s * NS))
    made.end(round(ended_s * NS))


def tell_round(key: str, began_s: float, ended_s: float, **facts: Fact) -> None:
    """Records the span of a whole round, which is the root of the round's trace. key: the text that identifies the round.

    `began_s` and `ended_s` are seconds since the epoch. facts: attributes of the span.
    """
    token = _fixed_ids.set(_ids(key))
    try:
        tell("round", Context(), began_s, ended_s, **facts)
    finally:
        _fixed_ids.reset(token)


@contextlib.contextmanager
def tracing(endpoint: str | None, service: str, name: str) -> Iterator[None]:
    """Sends the spans of this process to a trace collector until the block ends.

    endpoint: the collector's http://host:port (OTLP); None sends nothing. service: the kind of process. name: the name of this
    process among the processes of its kind. Raises ExtraMissing if the packages for tracing are not installed.
    """
    if endpoint is None:
        yield
        return
    try:
        import requests  # noqa: PLC0415 - comes with the exporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator  # noqa: PLC0415
    except ImportError as error:
        raise ExtraMissing(package="opentelemetry", extra="tracing", part="common") from error

    class Ids(RandomIdGenerator):
        """A generator of ids for traces and spans. Ids are random, except for the ids of a round's own span."""

        def generate_trace_id(self) -> int:
            ids = _fixed_ids.get()
            return super().generate_trace_id() if ids is None else ids[0]

        def generate_span_id(self) -> int:
            ids = _fixed_ids.get()
            return super().generate_span_id() if ids is None else ids[1]

    resource = Resource.create({"service.name": service, "service.instance.id": name})
    provider = TracerProvider(resource=resource, id_generator=Ids(), shutdown_on_exit=False)
    session = requests.Session()
    session.trust_env = not is_loopback(urlsplit(endpoint).hostname or "")  # this machine is reached without a proxy
    exporter: Any = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=5, session=session)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        closing = threading.Thread(target=provider.shutdown, daemon=True)
        closing.start()
        closing.join(LAST_SPANS_S)


def _ids(key: str) -> tuple[int, int]:
    """Returns the ids of a round's trace (128 bits) and of its first span (64 bits), computed by a hash of `key` and never 0."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:16]) or 1, int.from_bytes(digest[16:24]) or 1
