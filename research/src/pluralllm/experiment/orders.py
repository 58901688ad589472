"""The order that an experiment gives to its workers, and the result. Both ends of the pipe import this module."""

from dataclasses import dataclass
from pathlib import Path

from pluralllm.client.work.commands import Command


@dataclass(frozen=True, slots=True)
class Play:
    """The order to play one method with one seed, and to write the results into `out`."""

    experiment_json: str
    method: str
    seed: int
    out: Path
    model_path: Path | None  # folder of the embedding model; None: the experiment's model id is looked up
    cache: Path  # folder of embedded texts
    device: str


@dataclass(frozen=True, slots=True)
class Played:
    """The result of Play: the results are in the order's `out`."""


PLAY = Command("play", Play, Played)
