"""One round of Flower's SecAgg+ in one process: its own mod for each client, its own workflow for the server.

Runs in Flower's virtual environment; benchmarks/private_rounds.py starts it. The runtime between the parties is left out:
messages pass as objects, without serialisation, transport or state. What a client trains is made up, and does not count.
Prints one JSON line: CPU seconds of all clients and of the server, and the largest error of the mean.
"""

import argparse
import json
import logging
import math
import time

import numpy as np
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.compat.common import recorddict_compat as compat
from flwr.server import LegacyContext, ServerConfig, SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.supercore.task_identity import TaskIdentity

COLLECT_STAGE = 3  # the third exchange carries the masked vectors: who has dropped out does not answer


class Proxy(ClientProxy):
    """A client, as the strategy knows it. The workflow reads its number only."""

    def __init__(self, node_id):
        super().__init__(str(node_id))
        self.node_id = node_id

    def get_properties(self, *_):
        raise AssertionError("the workflow reads a client's number, and asks it by messages only")

    get_parameters = fit = evaluate = reconnect = get_properties


class Parties:
    """The clients of a round in place of the grid: each message goes through the client's mod at once."""

    def __init__(self, clients, values, drops, seed):
        self._contexts = {
            number: Context(run_id=1, node_id=number, node_config={}, state=RecordDict(), run_config={})
            for number in range(1, clients + 1)
        }
        self._values, self._seed = values, seed
        self._dropped = set(range(clients - drops + 1, clients + 1))
        self._exchange = 0
        self.cpu_s = self.not_counted_s = 0.0

    def send_and_receive(self, messages, *, timeout=None):
        del timeout
        began_s, counted_before_s = time.process_time(), self.cpu_s
        self._exchange += 1
        replies = [self._reply(message) for message in messages]
        # What passed here and is no client's work (copies in place of serialisation, the made-up training) counts for nobody.
        self.not_counted_s += time.process_time() - began_s - (self.cpu_s - counted_before_s)
        return replies

    def _reply(self, message):
        number = message.metadata.dst_node_id
        if self._exchange >= COLLECT_STAGE and number in self._dropped:
            return Message(Error(code=0, reason="dropped out"), reply_to=message)
        content = RecordDict(dict(message.content.items()))
        for name, record in message.content.config_records.items():  # the mod changes what it gets
            content[name] = ConfigRecord(dict(record.items()))
        message.content = content
        trained_s = 0.0

        def train(_message, _context):
            nonlocal trained_s
            began_s = time.process_time()
            parameters = ndarrays_to_parameters([delta(self._seed, number, self._values)])
            result = FitRes(Status(Code.OK, ""), parameters, examples(number), {})
            reply = Message(compat.fitres_to_recorddict(result, keep_input=False), reply_to=message)
            trained_s = time.process_time() - began_s
            return reply

        began_s = time.process_time()
        reply = secaggplus_mod(message, self._contexts[number], train)
        self.cpu_s += time.process_time() - began_s - trained_s
        return reply


def delta(seed, number, values):
    """Returns what a client trains. benchmarks/round_costs/parties.py has the same function."""
    return np.random.default_rng([seed, number]).normal(0, 2 / math.sqrt(values), values).astype(np.float32)


def examples(number):
    """Returns the weight of a client's update. benchmarks/round_costs/parties.py has the same function."""
    return 100 + number


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--values", type=int, required=True)
    parser.add_argument("--drops", type=int, required=True)
    parser.add_argument("--shares", type=int, required=True, help="Members among which a key is shared.")
    parser.add_argument("--threshold", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    chosen = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # the runtime sets them
    manager = SimpleClientManager()
    for number in range(1, chosen.clients + 1):
        manager.register(Proxy(number))
    strategy = FedAvg(
        fraction_fit=1.0,
        min_fit_clients=chosen.clients,
        min_available_clients=chosen.clients,
        initial_parameters=None,
    )
    context = LegacyContext(
        context=Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={}),
        config=ServerConfig(num_rounds=1),
        strategy=strategy,
        client_manager=manager,
    )
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
    first = ndarrays_to_parameters([np.zeros(chosen.values, np.float32)])
    context.state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(first, keep_input=False)
    workflow = SecAggPlusWorkflow(
        num_shares=chosen.shares, reconstruction_threshold=chosen.threshold, max_weight=1000.0, clipping_range=1.0
    )
    parties = Parties(chosen.clients, chosen.values, chosen.drops, chosen.seed)
    began_s = time.process_time()
    workflow(parties, context)
    server_s = time.process_time() - began_s - parties.cpu_s - parties.not_counted_s
    made = compat.arrayrecord_to_parameters(context.state.array_records[MAIN_PARAMS_RECORD], keep_input=True)
    (mean,) = parameters_to_ndarrays(made)
    total, weights = np.zeros(chosen.values), 0
    for number in range(1, chosen.clients - chosen.drops + 1):
        total += examples(number) * delta(chosen.seed, number, chosen.values).astype(np.float64)
        weights += examples(number)
    error = float(np.abs(mean - total / weights).max())
    facts = {"clients_s": parties.cpu_s, "coordinator_s": server_s, "error": error}
    print(json.dumps({**facts, "plain_s": plain_s(strategy, chosen)}))


def plain_s(strategy, chosen):
    """Returns the CPU seconds of the server in a plain round: the strategy's mean. The clients spend none beside training."""
    results = []
    for number in range(1, chosen.clients - chosen.drops + 1):
        parameters = ndarrays_to_parameters([delta(chosen.seed, number, chosen.values)])
        results.append((Proxy(number), FitRes(Status(Code.OK, ""), parameters, examples(number), {})))
    began_s = time.process_time()
    made, _ = strategy.aggregate_fit(1, results, [])
    compat.parameters_to_arrayrecord(made, keep_input=True)
    return time.process_time() - began_s


if __name__ == "__main__":
    main()
