"""The simulated runs: their rounds need every client, so that the same updates count whatever fault strikes."""

from dataclasses import dataclass
from typing import Any

from pluralllm.common.words.ids import RunId
from pluralllm.common.words.spec import RunSpec

RUN = RunId("simulated")
TWO = ("ann", "ben")


@dataclass(frozen=True, slots=True)
class Scenario:
    """A run and its clients."""

    name: str
    spec: RunSpec
    clients: tuple[str, ...]


def scenario(name: str, rounds: int) -> Scenario:
    """Returns the scenario with one of the names in `SCENARIOS`."""
    clients, changes = SCENARIOS[name]
    everybody = {"min_clients": len(clients), "target_clients": len(clients)}
    patience = {"gather_s": 30, "deadline_s": 100, "on_missed_quorum": "extend", "max_extensions": 1000}
    values: dict[str, Any] = {
        "rounds": rounds,
        "seed": 5,
        "round": {**everybody, **patience, "evaluate_every": 25, "evaluation_deadline_s": 100},
        "predictor": {"d_model": 1, "layers": 1, "heads": 1, "feedforward": 1, "embedder_layers": 2},
        "embedding": {"model": "none", "dimension": 1, "templates": ["{question}"]},
        **changes,
    }
    return Scenario(name, RunSpec.model_validate(values), clients)


SCENARIOS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "fedavg": (TWO, {}),
    "fedadam": (TWO, {"aggregation": {"optimizer": "fedadam", "server_learning_rate": 0.01}}),
    "int8": (TWO, {"updates": {"encoding": "int8"}, "aggregation": {"weighting": "agnostic"}}),
    # The model has two chunks: 1.2 MiB.
    "chunks": (
        (*TWO, "cat"),
        {"predictor": {"d_model": 160, "layers": 1, "heads": 1, "feedforward": 320, "embedder_layers": 2}},
    ),
}
