"""Runs the federation of benchmarks/against_flower_simulation.py in Flower's simulation engine, in Flower's environment.

Arguments: clients, rounds, the file for the last model, cores. A JSON file beside the model has the CPU seconds of each counted
round: of all processes together, and of the training alone.
"""

import json
import sys
from pathlib import Path

import numpy as np
import psutil
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from simulated_client import app as client_app
from simulated_federation import spec_of

from pluralllm.experiment.federated import first_values

server_app = ServerApp()


class Measuring(FedAvg):
    """FedAvg of Flower that also keeps the CPU seconds after each aggregation."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.training_s, self.all_s = [], []

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        if errors := [reply.error.reason for reply in replies if reply.has_error()]:
            raise SystemExit(errors[0])
        self.training_s.append(sum(reply.content["metrics"]["training_s"] for reply in replies))
        aggregated = super().aggregate_train(server_round, replies)
        self.all_s.append(cpu_of_tree())
        return aggregated


def cpu_of_tree() -> float:
    """Returns the CPU seconds of this process and of all its descendants, dead ones that were waited for included."""
    here = psutil.Process()
    total = 0.0
    for process in (here, *here.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


@server_app.main()
def main(grid: Grid, _context: Context) -> None:
    """Runs FedAvg over all clients in every round, and writes the figures and the last model."""
    clients, rounds = int(sys.argv[1]), int(sys.argv[2])
    every = {"min_train_nodes": clients, "min_available_nodes": clients, "min_evaluate_nodes": 0}
    strategy = Measuring(fraction_train=1.0, fraction_evaluate=0.0, **every)
    result = strategy.start(
        grid,
        initial_arrays=ArrayRecord([first_values(spec_of(clients, rounds))]),
        num_rounds=rounds,
        train_config=ConfigRecord({"clients": clients, "rounds": rounds}),
    )
    np.save(sys.argv[3], result.arrays.to_numpy_ndarrays()[0])
    figures = {
        "all_s": np.diff(strategy.all_s).tolist(),
        "training_s": strategy.training_s[1:],
    }
    Path(sys.argv[3]).with_suffix(".json").write_text(json.dumps(figures))


if __name__ == "__main__":
    resources = {"num_cpus": 1, "num_gpus": 0.0}
    ray_options = {"num_cpus": int(sys.argv[4]), "include_dashboard": False, "logging_level": "warning"}
    run_simulation(
        server_app,
        client_app,
        num_supernodes=int(sys.argv[1]),
        backend_config={"client_resources": resources, "init_args": ray_options},
    )
