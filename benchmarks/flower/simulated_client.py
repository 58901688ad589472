"""Flower client that trains the small predictor of benchmarks/simulated_federation.py with our own code, one client in a pass."""

import functools
import time

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from simulated_federation import CPU, clients_of, made_up_groups, spec_of

from pluralllm.experiment.passes import PassesHere

app = ClientApp()


@functools.cache
def prepared(clients: int, rounds: int) -> tuple:
    """Returns the trainer and the clients of this process; made in the round that does not count."""
    torch.set_num_threads(1)
    spec = spec_of(clients, rounds)
    groups = made_up_groups()
    return PassesHere(spec, CPU), [(client, groups[name]) for client, name in clients_of(clients).items()]


@app.train()
def train(message: Message, context: Context) -> Message:
    """Trains one client from the received values, and returns its new values and the CPU seconds of the training."""
    (base,) = message.content["arrays"].to_numpy_ndarrays()
    asked = message.content["config"]
    trainer, clients = prepared(asked["clients"], asked["rounds"])
    client, data = clients[int(context.node_config["partition-id"])]
    start_s = time.process_time()
    trained = next(trainer.train([{client: data}], base, asked["server-round"]))
    training_s = time.process_time() - start_s
    answer = {
        "arrays": ArrayRecord([base + trained.deltas[client]]),
        "metrics": MetricRecord({"num-examples": 100, "training_s": training_s}),
    }
    return Message(content=RecordDict(answer), reply_to=message)
