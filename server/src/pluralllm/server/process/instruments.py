"""Counters and histograms of the coordinator for Prometheus.

The code of this project limits the values of all labels; callers cannot add values. The counts start at 0 with the process.
Gauges, which show the coordinator's state, are in observe/gauges.py. The page docs/reference/metrics.md lists counters,
histograms and gauges; docs/generate.py makes the page from the code.
"""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

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
    "pluralllm_phase_seconds", "Time that a run spent in a phase, recorded when it leaves the phase.", ["phase"], buckets=SLOW_S,
    registry=REGISTRY,
)  # fmt: skip
UPDATES_ACCEPTED = Counter(
    "pluralllm_updates_accepted", "Updates accepted: they are durable and count.", registry=REGISTRY
)
UPDATES_REFUSED = Counter(
    "pluralllm_updates_refused",
    "Updates refused, by error code (see pluralllm explain CODE).",
    ["reason"],
    registry=REGISTRY,
)
UPDATES_LATE = Counter(
    "pluralllm_updates_late", "Calls about an update that came after its round had ended.", registry=REGISTRY
)
PLACES_LOST = Counter(
    "pluralllm_places_lost",
    "Slots in rounds that clients lost: the client was silent or reported a failure.",
    registry=REGISTRY,
)
AGGREGATION_SECONDS = Histogram(
    "pluralllm_aggregation_seconds", "Time to average a round's updates into the next version's files.", buckets=SLOW_S,
    registry=REGISTRY,
)  # fmt: skip
STORE_SECONDS = Histogram(
    "pluralllm_store_seconds",
    "Time of a database transaction, including the wait for the one before it.",
    ["kind"],
    buckets=FAST_S,
    registry=REGISTRY,
)
BLOB_SECONDS = Histogram(
    "pluralllm_blob_seconds",
    "Time of a call to the store of models and updates.",
    ["call"],
    buckets=FAST_S,
    registry=REGISTRY,
)
CALLS = Counter(
    "pluralllm_calls", "RPCs answered, by name and by code: OK or an error code.", ["rpc", "code"], registry=REGISTRY
)
LOOP_AGE_SECONDS = Gauge(
    "pluralllm_coordinator_loop_age_seconds",
    "Seconds since the coordinator's loop last went round; above 30 the coordinator is not healthy.",
    registry=REGISTRY,
)
LOG_LINES_LOST = Counter(
    "pluralllm_log_lines_lost", "Log lines that could not be written, for example to a full disk.", registry=REGISTRY
)
LOOP_LAG_SECONDS = Histogram(
    "pluralllm_event_loop_lag_seconds",
    "Delay of the event loop's timers; every call waits longer by this time.",
    buckets=FAST_S,
    registry=REGISTRY,
)


def note_step(before: Run, after: Run, event: ev.Event, effects: tuple[ev.Effect, ...]) -> None:
    """Counts one event of a run in the metrics. The caller calls the function when the event is durable.

    before, after: the run's state before and after the event. effects: the effects that followed from the event.
    """
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
        case ev.PlaceLost():
            PLACES_LOST.inc()
        case _:
            pass


def note_call(rpc: str, code: str) -> None:
    """Counts an answered RPC by its name and its code (OK or an error code).

    rpc: the RPC's path, whose last component is the name. A call about an update whose round had ended is also counted as late.
    """
    CALLS.labels(rpc.rpartition("/")[2], code).inc()
    if code == ROUND_CLOSED and rpc.endswith(("/BeginUpdate", "/PutChunks", "/CommitUpdate")):
        UPDATES_LATE.inc()
