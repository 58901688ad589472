"""A collector of traces that hangs delays nothing."""

import socket
import subprocess
import sys
import time

LIMIT_S = 60.0
# Prints how long spans and the end of tracing took. The exporter gives up an attempt after 5 s.
PROGRAM = """
import sys, time
from pluralllm.common.process import tracing
tracing.LAST_SPANS_S = 0.1
with tracing.tracing(sys.argv[1], "service", "name"):
    start_s = time.monotonic()
    for _ in range(3000):  # more than the exporter's queue takes
        with tracing.span("work"):
            pass
    end_s = time.monotonic()
print(end_s - start_s, time.monotonic() - end_s)
"""


def test_spans_and_the_end_of_a_process_do_not_wait_for_a_collector_that_hangs() -> None:
    with socket.socket() as collector:
        collector.bind(("127.0.0.1", 0))
        collector.listen(100)
        endpoint = f"http://127.0.0.1:{collector.getsockname()[1]}"
        command = [sys.executable, "-c", PROGRAM, endpoint]
        start_s = time.monotonic()
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=LIMIT_S)
        whole_s = time.monotonic() - start_s
    spans_s, end_s = map(float, done.stdout.split())
    assert spans_s < 5.0
    assert end_s < 5.0
    assert whole_s < 15.0
