"""The orders that an experiment sends to its worker processes, and the results that a worker sends back.

The two ends of the pipe import this module.
"""

from dataclasses import dataclass
from pathlib import Path

from pluralllm.client.work.commands import Command

PIECE_CHARACTERS = 4 * 1024 * 1024  # a line of the pipe may hold 16 MiB, and JSON may double a piece


@dataclass(frozen=True, slots=True)
class Play:
    """The order to train and score one method with one seed. The worker keeps the result records until they are fetched."""

    experiment_json: str
    method: str
    seed: int
    model_path: Path | None  # folder of the embedding model; None: the experiment's model id is looked up
    cache: Path  # folder of embedded texts
    device: str


@dataclass(frozen=True, slots=True)
class Played:
    """The reply to the order Play: in how many pieces the result records can be fetched."""

    pieces: int


@dataclass(frozen=True, slots=True)
class Fetch:
    """The order to send one piece of the result records of the last order Play."""

    piece: int  # 0 <= piece < pieces


@dataclass(frozen=True, slots=True)
class Fetched:
    """One piece of the result records. All pieces together are one JSON object: the records by line of the results table."""

    text: str


PLAY = Command("play", Play, Played)
FETCH = Command("fetch", Fetch, Fetched)
