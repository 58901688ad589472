"""The order that an experiment sends to its worker processes, and the result that a worker sends back.

The two ends of the pipe import this module.
"""

from dataclasses import dataclass
from pathlib import Path

from pluralllm.client.work.commands import Command


@dataclass(frozen=True, slots=True)
class Play:
    """The order to train and score one method with one seed, and to write the results into the folder `out`."""

    experiment_json: str
    method: str
    seed: int
    out: Path
    model_path: Path | None  # folder of the embedding model; None: the experiment's model id is looked up
    cache: Path  # folder of embedded texts
    device: str


@dataclass(frozen=True, slots=True)
class Played:
    """The reply to the order Play; it is empty, because the results are in the order's folder `out`."""


PLAY = Command("play", Play, Played)
