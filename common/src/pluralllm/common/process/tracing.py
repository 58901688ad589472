"""Traces of rounds with OpenTelemetry. They hold names, numbers and times, and never private content.

Tracing is off unless an endpoint is configured. The ids of a round's trace and of its first span follow from the names of run and
round, so every process adds to the same trace: clients read the ids from the `traceparent` of their tasks, and a coordinator that
was restarted computes them again.
Source: W3C Trace Context, section 3.2 (traceparent); OTLP over HTTP.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pluralllm.common.errors.root import PluralError
from pluralllm.common.errors.tree import ExtraMissing

TRACER = trace.get_tracer("pluralllm")
NS = 1_000_000_000
# Ids of the trace and the span that is being made; None draws them at random.
_fixed_ids: ContextVar[tuple[int, int] | None] = ContextVar("fixed_ids", default=None)

Fact = str | int | float


def traceparent(key: str) -> str:
    """Returns the traceparent header of the round that `key` names; it is the same in every process."""
    trace_id, span_id = _ids(key)
    return f"00-{trace_id:032x}-{span_id:016x}-01"


def context_of(parent: str) -> Context:
    """Returns the parent context encoded in a traceparent header; an empty context if it is missing or malformed."""
    return TraceContextTextMapPropagator().extract({"traceparent": parent}, Context())


def round_context(key: str) -> Context:
    """Returns the context whose child spans belong to the round that `key` names."""
    trace_id, span_id = _ids(key)
    first = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return trace.set_span_in_context(NonRecordingSpan(first), Context())


@contextlib.contextmanager
def span(name: str, context: Context | None = None, **facts: Fact) -> Iterator[None]:
    """Records a span for the work of its block, as a child of `context` or of the span around it.

    facts: attributes of the span. For an error, the span records its code, never its text.
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
    """Records a span of work that has ended already. `began_s` and `ended_s` are seconds since the epoch."""
    made = TRACER.start_span(name, context, attributes=facts, start_time=round(began_s * NS))
    made.end(round(ended_s * NS))


def tell_round(key: str, began_s: float, ended_s: float, **facts: Fact) -> None:
    """Records the span of a whole round, which is the root of its trace. Times are seconds since the epoch."""
    token = _fixed_ids.set(_ids(key))
    try:
        tell("round", Context(), began_s, ended_s, **facts)
    finally:
        _fixed_ids.reset(token)


@contextlib.contextmanager
def tracing(endpoint: str | None, service: str, name: str) -> Iterator[None]:
    """Sends the spans of this process to a collector until the block ends.

    endpoint: the collector's http://host:port (OTLP); None sends nothing. service, name: what this process is, and the name of
    this instance. Raises ExtraMissing if the packages for tracing are not installed.
    """
    if endpoint is None:
        yield
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator  # noqa: PLC0415
    except ImportError as error:
        raise ExtraMissing(package="opentelemetry", extra="tracing", part="common") from error

    class Ids(RandomIdGenerator):
        """A generator of random ids that uses the fixed ids, if there are any: a round's own span has them."""

        def generate_trace_id(self) -> int:
            ids = _fixed_ids.get()
            return super().generate_trace_id() if ids is None else ids[0]

        def generate_span_id(self) -> int:
            ids = _fixed_ids.get()
            return super().generate_span_id() if ids is None else ids[1]

    resource = Resource.create({"service.name": service, "service.instance.id": name})
    provider = TracerProvider(resource=resource, id_generator=Ids(), shutdown_on_exit=False)
    exporter: Any = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=5)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        provider.shutdown()


def _ids(key: str) -> tuple[int, int]:
    """Returns the ids of a round's trace (128 bits) and of its first span (64 bits), never 0."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:16]) or 1, int.from_bytes(digest[16:24]) or 1
