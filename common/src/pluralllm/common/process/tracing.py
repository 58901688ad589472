"""Traces of rounds by OpenTelemetry: off unless an endpoint is configured, and never any private content: names, numbers, times.

A round's trace and its first span are a function of run and round, so that every process adds to the same trace: the partners' by
the `traceparent` of their tasks, and a coordinator that was restarted in between by computing it again.
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
_given: ContextVar[tuple[int, int] | None] = ContextVar("given", default=None)  # ids of the span that is being made

Fact = str | int | float


def traceparent(key: str) -> str:
    """Of the round that `key` names: the same in every process."""
    of_trace, of_span = _ids(key)
    return f"00-{of_trace:032x}-{of_span:016x}-01"


def context_of(parent: str) -> Context:
    """What spans hang from that carry on a traceparent; the empty context for none, or one that is malformed."""
    return TraceContextTextMapPropagator().extract({"traceparent": parent}, Context())


def round_context(key: str) -> Context:
    of_trace, of_span = _ids(key)
    first = SpanContext(of_trace, of_span, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return trace.set_span_in_context(NonRecordingSpan(first), Context())


@contextlib.contextmanager
def span(name: str, context: Context | None = None, **facts: Fact) -> Iterator[None]:
    """Around one piece of work, a child of the span around it. An error leaves its code, never its text."""
    with TRACER.start_as_current_span(
        name, context, attributes=facts, record_exception=False, set_status_on_exception=False
    ) as made:
        try:
            yield
        except BaseException as error:
            made.set_attribute("error.type", error.reason if isinstance(error, PluralError) else type(error).__name__)
            raise


def tell(name: str, context: Context, began_s: float, ended_s: float, **facts: Fact) -> None:
    """A span that is over: from `began_s` to `ended_s`, seconds since the epoch."""
    made = TRACER.start_span(name, context, attributes=facts, start_time=round(began_s * NS))
    made.end(round(ended_s * NS))


def tell_round(key: str, began_s: float, ended_s: float, **facts: Fact) -> None:
    """The round's own span, which all others of its trace hang from."""
    token = _given.set(_ids(key))
    try:
        tell("round", Context(), began_s, ended_s, **facts)
    finally:
        _given.reset(token)


@contextlib.contextmanager
def tracing(endpoint: str | None, service: str, name: str) -> Iterator[None]:
    """Spans of this process go to the collector at `endpoint` (http://host:port, OTLP) until the block ends; None: nowhere.

    name: this instance's. Raises ExtraMissing.
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
        """A round's own span has ids that are given."""

        def generate_trace_id(self) -> int:
            given = _given.get()
            return super().generate_trace_id() if given is None else given[0]

        def generate_span_id(self) -> int:
            given = _given.get()
            return super().generate_span_id() if given is None else given[1]

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
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:16]) or 1, int.from_bytes(digest[16:24]) or 1
