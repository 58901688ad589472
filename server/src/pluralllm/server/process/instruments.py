"""What the coordinator counts and times, for Prometheus. All labels are bounded: by the code, never by what a caller sends.

These live as long as the process. What is read off the coordinator's state (gauges) is in picture.py; all of it is listed in
docs/reference/metrics.md, which is made from here.
"""

from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, PlatformCollector, ProcessCollector

from pluralllm.common.errors.root import reason_of
from pluralllm.common.errors.tree import RoundClosed
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Run

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

ROUND_CLOSED = reason_of(RoundClosed)
FAST_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)
SLOW_S = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600, 14_400, 86_400)

ROUNDS = Counter("pluralllm_rounds", "Rounds that have ended: published or abandoned.", ["outcome"], registry=REGISTRY)
PHASE_SECONDS = Histogram(
    "pluralllm_phase_seconds", "Time that runs spent in a phase, told when they leave it.", ["phase"], buckets=SLOW_S,
    registry=REGISTRY,
)  # fmt: skip
UPDATES_ACCEPTED = Counter("pluralllm_updates_accepted", "Updates that are durable and count.", registry=REGISTRY)
UPDATES_REFUSED = Counter(
    "pluralllm_updates_refused",
    "Updates refused, by the code of the reason (pluralllm explain CODE).",
    ["reason"],
    registry=REGISTRY,
)
UPDATES_LATE = Counter(
    "pluralllm_updates_late", "Calls about an update whose round was over by then.", registry=REGISTRY
)
PLACES_LOST = Counter(
    "pluralllm_places_lost",
    "Times a client lost its place in a round: silence, or a failure it told.",
    registry=REGISTRY,
)
AGGREGATION_SECONDS = Histogram(
    "pluralllm_aggregation_seconds", "Averaging the updates of a round into the next version's files.", buckets=SLOW_S,
    registry=REGISTRY,
)  # fmt: skip
STORE_SECONDS = Histogram(
    "pluralllm_store_seconds",
    "Transactions of the database, waiting for the one before included.",
    ["kind"],
    buckets=FAST_S,
    registry=REGISTRY,
)
BLOB_SECONDS = Histogram(
    "pluralllm_blob_seconds", "Calls to where models and updates are kept.", ["call"], buckets=FAST_S, registry=REGISTRY
)
CALLS = Counter(
    "pluralllm_calls", "RPCs answered, by name and code: OK, or why not.", ["rpc", "code"], registry=REGISTRY
)
LOOP_LAG_SECONDS = Histogram(
    "pluralllm_event_loop_lag_seconds",
    "How late the event loop wakes who asked to be woken: what every caller waits longer.",
    buckets=FAST_S,
    registry=REGISTRY,
)


def note_step(before: Run, after: Run, event: ev.Event, effects: tuple[ev.Effect, ...]) -> None:
    """Counts what an event has done to a run, once it is durable."""
    if after.phase is not before.phase:
        PHASE_SECONDS.labels(before.phase).observe(max(0.0, event.at_s - before.since_s))
    for effect in effects:
        match effect:
            case ev.Publish():
                ROUNDS.labels("published").inc()
            case ev.Abandon():
                ROUNDS.labels("abandoned").inc()
            case ev.RecordReceipt():
                UPDATES_ACCEPTED.inc()
            case _:
                pass
    match event:
        case ev.UpdateRefused():
            UPDATES_REFUSED.labels(event.reason).inc()
        case ev.PlaceLost():
            PLACES_LOST.inc()
        case _:
            pass


def note_call(rpc: str, code: str) -> None:
    """One RPC, by its method's last word."""
    CALLS.labels(rpc.rpartition("/")[2], code).inc()
    if code == ROUND_CLOSED and rpc.endswith(("/BeginUpdate", "/PutChunks", "/CommitUpdate")):
        UPDATES_LATE.inc()
