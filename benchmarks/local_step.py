"""Profiles the training of one client on the CPU: where the time of a local step goes, and the share of the matrix rate.

.venv/bin/python benchmarks/local_step.py [--preset default] [--threads 1] [--repeats 5]

The task is a whole one of the service, with files for the model and the update, and a synthetic group of the survey's size. The
profile has torch's own operations by kind, each without those that it calls, as shares of their sum. The matrix rate is that of
one large product of float32 matrices in the same run.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from batched_round import made_up, spec_of
from predictor import matrix_rate
from torch.profiler import ProfilerActivity, profile

from pluralllm.client.work.train import train
from pluralllm.common.predictor.data import GroupData
from pluralllm.common.predictor.first_version import write_first_version
from pluralllm.common.words.spec import RunSpec

KINDS = {
    "matrix products": (
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::baddbmm",
        "aten::addmv",
        "aten::mv",
        "aten::dot",
    ),
    "cos and sin": ("aten::cos", "aten::sin"),
    "Cholesky and solutions": ("aten::linalg_cholesky_ex", "aten::cholesky_solve", "aten::linalg_solve_triangular"),
    "dropout": ("aten::bernoulli_", "aten::native_dropout", "aten::dropout"),
    "Adam": (
        "aten::_foreach",
        "aten::_fused",
        "aten::addcmul_",
        "aten::addcdiv_",
        "aten::lerp_",
        "aten::sqrt",
        "Optimizer",
    ),
}
DEVICE = torch.device("cpu")


def task(folder: Path, spec: RunSpec, data: GroupData) -> None:
    state, residual = folder / "moments", folder / "residual"
    train(folder / "base", folder / "delta", spec, data, 1, 0, DEVICE, state, residual, lambda _done, _of: None)


def cpu_s(spec: RunSpec, folder: Path, data: GroupData) -> float:
    """Returns the CPU time of one task in seconds, which other work on the machine changes less than its duration."""
    began_s = time.process_time()
    task(folder, spec, data)
    return time.process_time() - began_s


def kind_of(operation: str) -> str:
    for kind, names in KINDS.items():
        if operation.startswith(names):
            return kind
    return "torch's other operations" if operation.startswith("aten::") else "backward and other machinery of torch"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    spec = spec_of(chosen.preset)
    data, steps = made_up("group", 0, spec), spec.training.local_steps
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_first_version(folder / "base", spec)
        task(folder, spec, data)
        took_s, rates = [], []
        for _ in range(chosen.repeats):
            rates.append(matrix_rate(DEVICE))
            took_s.append(cpu_s(spec, folder, data))
        with profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiled:
            task(folder, spec, data)
    events = profiled.key_averages()
    operations = sum(event.flops for event in events)
    step_s, rate = statistics.median(took_s) / steps, statistics.median(rates)
    operations_s, per_step = operations / steps / step_s, sum(event.count for event in events) / steps
    print(
        f"preset {chosen.preset}, {chosen.threads} thread(s), a task of {steps} steps: {1e3 * steps * step_s:.1f} ms of CPU"
    )
    print(f"a step takes {1e3 * step_s:.2f} ms and {per_step:.0f} operations of torch")
    print(f"matrix products: {operations / steps / 1e6:.1f} million floating point operations a step, that is")
    print(f"{operations_s / rate:.1%} of the matrix rate of {rate / 1e9:.0f} GFLOP/s")
    total, shares = sum(event.self_cpu_time_total for event in events), Counter[str]()
    for event in events:
        shares[kind_of(event.key)] += event.self_cpu_time_total / total
    for kind, share in shares.most_common():
        print(f"  {share:6.1%}  {kind}")
    for event in sorted(events, key=lambda event: -event.self_cpu_time_total)[:12]:
        print(f"    {event.self_cpu_time_total / total:6.1%}  {event.key} ({event.count / steps:.1f} a step)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
