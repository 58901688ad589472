"""What the daemon counts and times, for the partner's own Prometheus; nothing of it goes to the coordinator.

All labels are bounded. Listed in docs/reference/metrics.md, which is made from here.
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
    "pluralllm_client_connected", "1 while the coordinator answers this client's polls.", registry=REGISTRY
)
TASKS = Counter(
    "pluralllm_client_tasks",
    "Tasks by kind and end: done; dropped (no longer wanted); interrupted (goes on later); failed (the log says why).",
    ["kind", "end"],
    registry=REGISTRY,
)
WORK_SECONDS = Histogram(
    "pluralllm_client_work_seconds",
    "The work of a task by itself: training, evaluating, scoring.",
    ["kind"],
    buckets=WORK_S,
    registry=REGISTRY,
)
LOSS = Gauge("pluralllm_client_training_loss", "Mean loss of the newest training.", registry=REGISTRY)
ALIGNMENT = Gauge(
    "pluralllm_client_alignment_score", "Of the version evaluated last, with this group, 0 .. 1.", registry=REGISTRY
)
GPU_MEMORY_BYTES = Gauge(
    "pluralllm_client_gpu_memory_bytes", "The most that training has held on the GPU; 0 without one.", registry=REGISTRY
)
RETRIES = Counter("pluralllm_client_retries", "Calls and transfers that were tried again.", registry=REGISTRY)
OUTBOX_UPDATES = Gauge("pluralllm_client_outbox_updates", "Finished updates without a receipt.", registry=REGISTRY)
SENT_BYTES = Counter("pluralllm_client_sent_bytes", "Of updates.", registry=REGISTRY)
RECEIVED_BYTES = Counter("pluralllm_client_received_bytes", "Of model versions.", registry=REGISTRY)
CERTIFICATE_LEFT_SECONDS = Gauge(
    "pluralllm_client_certificate_left_seconds",
    "Until this client's certificate ends; it is renewed when a third of its life is left. Absent in plain text.",
    ["certificate"],
    registry=REGISTRY,
)
for not_known_yet in (LOSS, ALIGNMENT):
    not_known_yet.set(math.nan)
