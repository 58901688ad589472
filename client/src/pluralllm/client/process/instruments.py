"""The daemon's Prometheus metrics, for the partner's own monitoring. None of the metrics goes to the coordinator.

Every label has a small, fixed set of values. docs/generate.py makes docs/reference/metrics.md from this module.
"""

import math

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

WORK_S = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600, 14_400)

CONNECTED = Gauge(
    "pluralllm_client_connected", "1 while the coordinator answers this client's polls, else 0.", registry=REGISTRY
)
TASKS = Counter(
    "pluralllm_client_tasks",
    "Tasks by kind and end: done; dropped (no longer needed); interrupted (goes on later); failed (the log has the reason).",
    ["kind", "end"],
    registry=REGISTRY,
)
WORK_SECONDS = Histogram(
    "pluralllm_client_work_seconds",
    "Seconds of work in one task, without transfers: training, evaluating or scoring.",
    ["kind"],
    buckets=WORK_S,
    registry=REGISTRY,
)
LOSS = Gauge("pluralllm_client_training_loss", "Mean loss of the last training.", registry=REGISTRY)
ALIGNMENT = Gauge(
    "pluralllm_client_alignment_score",
    "Alignment score of the version evaluated last, on this group's answers, 0 to 1.",
    registry=REGISTRY,
)
CONTEXT_GAIN = Gauge(
    "pluralllm_client_context_gain",
    "Alignment score of the version evaluated last minus its score with uniform answers as the context. Near 0, predictions do "
    "not depend on the group.",
    registry=REGISTRY,
)
GPU_MEMORY_BYTES = Gauge(
    "pluralllm_client_gpu_memory_bytes",
    "Largest number of bytes that training has held on the GPU; 0 without a GPU.",
    registry=REGISTRY,
)
RETRIES = Counter("pluralllm_client_retries", "Calls and transfers that were repeated.", registry=REGISTRY)
OUTBOX_UPDATES = Gauge(
    "pluralllm_client_outbox_updates", "Finished updates that have no receipt yet.", registry=REGISTRY
)
SENT_BYTES = Counter(
    "pluralllm_client_sent_bytes", "Bytes of updates sent since the process started.", registry=REGISTRY
)
RECEIVED_BYTES = Counter(
    "pluralllm_client_received_bytes", "Bytes of model versions received since the process started.", registry=REGISTRY
)
CERTIFICATE_LEFT_SECONDS = Gauge(
    "pluralllm_client_certificate_left_seconds",
    "Seconds until this client's certificate ends; it is renewed when a third of its life is left. Absent in plain text.",
    ["certificate"],
    registry=REGISTRY,
)
for gauge in (LOSS, ALIGNMENT, CONTEXT_GAIN):  # no value yet
    gauge.set(math.nan)
