"""Flower server that runs FedAvg over all clients and writes the time of each round's end to a file."""

import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Noting(FedAvg):
    """FedAvg of Flower that also appends the time of each aggregation's end to a file."""

    ends: Path

    def aggregate_train(self, server_round, replies):
        aggregated = super().aggregate_train(server_round, replies)
        with self.ends.open("a") as file:
            file.write(f"{time.time()}\n")
        return aggregated


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs FedAvg with the numbers of clients and rounds and the model size that the run's configuration gives."""
    config = context.run_config
    clients = int(config["clients"])
    strategy = Noting(
        fraction_train=1.0,
        fraction_evaluate=0.0,
        min_train_nodes=clients,
        min_evaluate_nodes=0,
        min_available_nodes=clients,
    )
    strategy.ends = Path(str(config["ends"]))
    model = ArrayRecord([np.zeros(int(config["megabytes"]) * 250_000, np.float32)])
    strategy.start(grid, initial_arrays=model, num_rounds=int(config["rounds"]))
