"""Measures the memory of the coordinator's aggregation: how much the process grows while it averages many large updates.

    .venv/bin/python benchmarks/aggregation_memory.py --updates 32 --megabytes 64

The resident set (VmRSS) is sampled during the average. Each measurement uses a new process.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil

from pluralllm.common.weights.layout import Layout, layout_of, write_weights
from pluralllm.common.weights.server_optimizer import server_optimizer
from pluralllm.common.weights.stored_weights import StoredWeights
from pluralllm.common.words.aggregation import Aggregation
from pluralllm.server.aggregation.update_files import average

SAMPLE_EVERY_S = 0.005


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=32)
    parser.add_argument("--megabytes", type=int, default=64, help="Size of one update, in 10^6 bytes.")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--measure", type=Path, help=argparse.SUPPRESS
    )  # how this script starts the process that it measures
    arguments = parser.parse_args()
    layout = layout_of([("weights", (arguments.megabytes * 1_000_000 // 4 // 1000, 1000))])
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.measure, arguments.updates, layout)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digests = [
            write_weights(folder / f"{n}", layout, [_values(layout.values, n)]).digest
            for n in range(arguments.updates + 1)
        ]
        (folder / "digests.json").write_text(json.dumps(digests))
        measured = []
        for _ in range(arguments.runs):
            command = [sys.executable, __file__, "--measure", name, "--updates", str(arguments.updates)]
            command += ["--megabytes", str(arguments.megabytes)]
            measured.append(json.loads(subprocess.run(command, capture_output=True, check=True, timeout=600).stdout))
    growths, seconds = [growth for growth, _ in measured], [took_s for _, took_s in measured]
    total = arguments.updates * layout.size_bytes / 1e6
    print(
        f"{arguments.updates} updates of {layout.size_bytes / 1e6:.0f} MB ({total:.0f} MB): resident memory grows by "
        f"{statistics.median(growths) / 1e6:.0f} MB (median of {arguments.runs}, max {max(growths) / 1e6:.0f}), "
        f"{statistics.median(seconds):.1f} s ({total / statistics.median(seconds):.0f} MB/s, hashed and averaged)"
    )


def _values(count: int, seed: int) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    return np.random.default_rng(seed).standard_normal(count, dtype=np.float32)


def measure(folder: Path, updates: int, layout: Layout) -> tuple[int, float]:
    """Averages the updates in `folder`; returns the growth of the resident set in bytes, and the time in seconds.

    updates: number of updates. Call the function in a process that has done nothing else.
    """
    digests = json.loads((folder / "digests.json").read_text())
    stored = [StoredWeights(folder / f"{number}", digest) for number, digest in enumerate(digests[: updates + 1])]
    process = psutil.Process()
    before = process.memory_info().rss
    peak = before
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, process.memory_info().rss)
            time.sleep(SAMPLE_EVERY_S)

    sampler = threading.Thread(target=sample)
    sampler.start()
    started_s = time.monotonic()
    weights = np.arange(1.0, len(stored))
    optimizer = server_optimizer(Aggregation())
    average(stored[0], (), stored[1:], weights, layout, optimizer, [folder / "out"])
    took_s = time.monotonic() - started_s
    done.set()
    sampler.join()
    return peak - before, took_s


if __name__ == "__main__":
    main()
