"""Compares the CPU of a federation of 100 clients that train here with the same federation in Flower's simulation engine on Ray.

    .venv/bin/python benchmarks/against_flower_simulation.py [--clients 100] [--rounds 6] [--repetitions 3] [--venv FOLDER]

The clients of both train the same small predictor from the same seeds with the same code (simulated_federation.py): here several
clients in a pass and in one process, in Flower one client in each message. The CPU seconds of the training itself are counted
alone, by the processes that train. What is left of a round is beside the training: messages, processes, weights and the average.
The last models of both must agree within rounding. The first round of each federation does not count.

Flower is installed into its own virtual environment (--venv, created if it does not exist), which also sees this one's packages.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from against_flower import FLOWER, installed
from simulated_federation import CPU, clients_of, made_up_groups, spec_of

from pluralllm.common.words.ids import RoundNumber
from pluralllm.experiment.federated import Federation
from pluralllm.experiment.passes import Clients, PassesHere, Trained
from pluralllm.experiment.stacked import Flat

SCRIPT = Path(__file__).parent / "flower" / "simulation.py"
SIMULATION = FLOWER.replace("flwr", "flwr[simulation]")


class Counted:
    """Trains passes in this process, and counts the CPU seconds of the training alone."""

    elsewhere_s = 0.0

    def __init__(self, passes: PassesHere) -> None:
        self._passes, self.training_s = passes, 0.0

    def train(self, passes: Sequence[Clients], base: Flat, number: RoundNumber) -> Iterator[Trained]:
        trained = iter(self._passes.train(passes, base, number))
        while True:
            start_s = time.process_time()
            one = next(trained, None)
            self.training_s += time.process_time() - start_s
            if one is None:
                return
            yield one


def ours(clients: int, rounds: int) -> tuple[list[float], list[float], Flat]:
    """Plays the federation here. Returns the CPU seconds of each round and of its training, and the last model."""
    spec = spec_of(clients, rounds)
    passes = Counted(PassesHere(spec, CPU))
    federation = Federation(spec, made_up_groups(), CPU, clients_of(clients), passes)
    whole, training = [], []
    while not federation.is_over:
        start_s, before_s = time.process_time(), passes.training_s
        federation.play_round()
        whole.append(time.process_time() - start_s)
        training.append(passes.training_s - before_s)
    return whole[1:], training[1:], federation.point.values


def flower(python: Path, folder: Path, clients: int, rounds: int, cores: int) -> tuple[list[float], list[float], Flat]:
    """Plays the federation in Flower. Returns the same figures as `ours`."""
    sources = [entry for entry in sys.path if (Path(entry) / "pluralllm").is_dir() and "site-packages" not in entry]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*sources, str(Path(__file__).parent), str(SCRIPT.parent)]),
        "FLWR_HOME": str(folder / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    model = folder / "model.npy"
    command = [str(python), str(SCRIPT), str(clients), str(rounds), str(model), str(cores)]
    played = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    if not model.with_suffix(".json").exists():
        raise SystemExit(played.stderr[-5000:])
    figures = json.loads(model.with_suffix(".json").read_text())
    return figures["all_s"], figures["training_s"], np.load(model)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2, help="Clients that Flower trains side by side.")
    parser.add_argument("--venv", type=Path, default=Path(tempfile.gettempdir()) / "pluralllm-flower-simulation")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    python = installed(asked.venv, SIMULATION, sees_this_environment=True) / "python"
    print(f"{SIMULATION}, {asked.clients} clients; CPU seconds of a round: all, training alone, beside it")
    ratios_beside, ratios_whole = [], []
    for _ in range(asked.repetitions):
        medians = []
        models = []
        for name in ("here", "Flower"):
            if name == "here":
                whole, training, model = ours(asked.clients, asked.rounds)
            else:
                with tempfile.TemporaryDirectory() as folder:
                    whole, training, model = flower(python, Path(folder), asked.clients, asked.rounds, asked.cores)
            beside = [one - other for one, other in zip(whole, training, strict=True)]
            medians.append([statistics.median(values) for values in (whole, training, beside)])
            models.append(model)
            print(f"{name:<8}" + "".join(f"{median:>10.3f}" for median in medians[-1]), flush=True)
        apart = float(np.linalg.norm(models[0] - models[1]) / np.linalg.norm(models[1]))
        ratios_beside.append(medians[1][2] / medians[0][2])
        ratios_whole.append(medians[1][0] / medians[0][0])
        print(
            f"ratio: beside the training {ratios_beside[-1]:.1f}, whole {ratios_whole[-1]:.1f}; models differ by {apart:.1e}"
        )
    print(
        f"median: beside the training {statistics.median(ratios_beside):.1f}, whole {statistics.median(ratios_whole):.1f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
