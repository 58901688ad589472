"""Measures memory and CPU seconds of a federation of virtual clients, and compares the bits of several ways to play it.

    .venv/bin/python benchmarks/virtual_clients.py OUT.jsonl                  # 10^5 clients, cohorts of 1,000, 20 rounds
    .venv/bin/python benchmarks/virtual_clients.py OUT.jsonl --ray 2          # the same rounds with two workers of Ray
    .venv/bin/python benchmarks/virtual_clients.py OUT.jsonl --slices 8       # the same rounds, other slices of the updates
    .venv/bin/python benchmarks/virtual_clients.py OUT.jsonl --local-steps 1  # a cheaper round; the updates stay as large
    .venv/bin/python benchmarks/virtual_clients.py OUT.jsonl --clients 10000 --cohort 100 --rounds 2

The groups are made up. The model is the preset's, so an update has its true size. Each round is one line of OUT.jsonl, with the
digest of its model version. All lines of one setting and round must have one digest, however the round was played: the benchmark
ends with status 1 at the first round that differs. The kind of processor belongs to the setting, because another kind gives other
last bits. The cut of the passes follows from the setting alone. The last round is kept beside OUT.jsonl, so a killed command goes
on where it was.
"""

import argparse
import contextlib
import hashlib
import json
import platform
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from simulated_federation import made_up_group

from pluralllm.common.words.spec import RunSpec, merge, preset_values
from pluralllm.experiment import federated
from pluralllm.experiment.engines.units import RayOptions
from pluralllm.experiment.federated import Federation, Point, Standing
from pluralllm.experiment.spec import Virtual
from pluralllm.experiment.virtual import groups_of_clients
from pluralllm.server.rounds.state import Run

SETTING = ("processor", "preset", "clients", "cohort", "of_rounds", "groups", "local_steps")


def spec_of(asked: argparse.Namespace) -> RunSpec:
    usual = preset_values(asked.preset)
    steps = {"local_steps": asked.local_steps} if asked.local_steps else {}
    values: dict[str, Any] = {
        "rounds": asked.rounds,
        "round": {"min_clients": asked.cohort, "target_clients": asked.cohort},
        "training": {"keep_optimizer_state": False} | steps,
        "updates": {"encoding": "fp32"},
        "embedding": {"model": "made up", "dimension": 384 * len(usual["embedding"]["templates"])},
    }
    return RunSpec.model_validate(merge(usual, values))


@dataclass(frozen=True)
class Kept:
    """Facts from which a killed command goes on, beside the model's values and the moments of the server optimizer."""

    run: Run
    counts: tuple[int, int, int, int]  # rounds, gradient steps, episodes and bytes
    longest_update: float
    seconds: float  # of CPU
    peak_mib: float


KEPT = TypeAdapter(Kept)


class Log:
    """The lines of OUT.jsonl, and the standing after the newest round of this way of playing."""

    def __init__(self, asked: argparse.Namespace, local_steps: int) -> None:
        self._out: Path = asked.out
        way = f"ray {asked.ray}" if asked.ray else "one process"
        processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        facts = vars(asked) | {"of_rounds": asked.rounds, "processor": processor, "local_steps": local_steps}
        self._line = {key: facts[key] for key in SETTING} | {"way": f"{way}, {asked.slices} x narrower slices"}
        digest = hashlib.sha256(json.dumps(self._line).encode()).hexdigest()[:12]
        self._kept = self._out.with_name(f"{self._out.stem}-{digest}.npz")
        here = Path(__file__).parent
        commit = ["git", "rev-parse", "--short", "HEAD"]
        self._commit = subprocess.run(commit, check=True, capture_output=True, text=True, cwd=here).stdout.strip()

    def go_on(self, federation: Federation) -> tuple[float, float]:
        """Sets the federation to the kept round, if there is one. Returns its CPU seconds and peak in MiB so far."""
        if not self._kept.exists():
            return 0.0, 0.0
        with np.load(self._kept) as file:
            kept = KEPT.validate_json(file["json"].tobytes())
            point = Point(file["values"], *kept.counts, kept.longest_update)
            federation.go_on_from(Standing(kept.run, point, file["moments"]))
        print(f"goes on after round {federation.point.rounds}", flush=True)
        return kept.seconds, kept.peak_mib

    def add(self, federation: Federation, seconds: float, peak_mib: float) -> bool:
        """Adds a round, and keeps the standing after it. Returns whether all lines of the same round have its digest."""
        point = federation.point
        digest = hashlib.sha256(point.values.tobytes()).hexdigest()[:16]
        line = self._line | {"round": point.rounds, "sha256": digest}
        lines = [json.loads(text) for text in self._out.read_text().splitlines()] if self._out.exists() else []
        same = [other for other in lines if all(other[key] == line[key] for key in (*SETTING, "round"))]
        with self._out.open("a") as file:
            figures = {"cpu_s": round(seconds, 1), "peak_mib": round(peak_mib), "commit": self._commit}
            file.write(json.dumps(line | figures) + "\n")
        standing = federation.standing()
        counts = (point.rounds, point.gradient_steps, point.episodes, point.moved_bytes)
        kept = KEPT.dump_json(Kept(standing.run, counts, point.longest_update, seconds, peak_mib))
        part = self._kept.with_suffix(".part.npz")
        np.savez(part, values=point.values, moments=standing.moments, json=np.frombuffer(kept, np.uint8))
        part.replace(self._kept)
        equal = all(other["sha256"] == digest for other in same)
        print(
            f"{line['way']}: round {point.rounds}, {digest}, {'same as' if equal else 'NOT the bits of'} {len(same)} other "
            f"lines; {seconds:.0f} CPU-s, at most {peak_mib:,.0f} MiB",
            flush=True,
        )
        return equal


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT.jsonl")
    parser.add_argument("--clients", type=int, default=100_000)
    parser.add_argument("--cohort", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--stop-after", type=int, help="Play the first so many of the rounds only.")
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--preset", default="default")
    parser.add_argument(
        "--local-steps", type=int, help="Local steps of a client in a round; by default those of the preset."
    )
    parser.add_argument("--slices", type=int, default=1, help="Read the updates in slices so many times narrower.")
    parser.add_argument("--ray", type=int, default=0, metavar="WORKERS", help="Train the passes on Ray.")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    spec = spec_of(asked)
    names = [f"group {number}" for number in range(asked.groups)]
    groups = {name: made_up_group(name, 300, spec.embedding.dimension, seed) for seed, name in enumerate(names)}
    clients = groups_of_clients(Virtual(clients=asked.clients), names, spec.seed)
    federated.VALUES_AT_ONCE //= asked.slices
    with contextlib.ExitStack() as stack:
        passes = None
        if asked.ray:
            from pluralllm.experiment.engines.ray_cluster import connected  # noqa: PLC0415 - Ray is an extra
            from pluralllm.experiment.engines.ray_passes import RayPasses  # noqa: PLC0415
            from pluralllm.experiment.engines.ray_workers import Terms, versions_here  # noqa: PLC0415

            stack.enter_context(connected(RayOptions(), asked.ray))
            passes = RayPasses(spec, Terms(versions_here()))
        federation = Federation(spec, groups, torch.device("cpu"), clients, passes)
        log = Log(asked, spec.training.local_steps)
        before_s, before_mib = log.go_on(federation)
        start_s = time.process_time()
        while not federation.is_over and federation.point.rounds < (asked.stop_after or asked.rounds):
            federation.play_round()
            elsewhere_s = passes.elsewhere_s if passes else 0.0
            seconds = before_s + time.process_time() - start_s + elsewhere_s
            if not log.add(
                federation, seconds, max(before_mib, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
            ):
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
