"""The orders that a daemon gives to its worker, and their results. Both ends of the pipe import this module.

Tensors travel as files: orders and results hold paths. The paths of an order are absolute.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pluralllm.client.link.tasks import Scores
from pluralllm.client.work.commands import Command
from pluralllm.common.words.ids import Digest
from pluralllm.common.words.spec import GroupRole


@dataclass(frozen=True, slots=True)
class Prepare:
    """The order to read, embed and check the private data for one run. Only the first time takes long."""

    spec_json: str  # canonical; its SHA-256 names the run in the orders below
    data: Path  # the private file
    group: str
    role: GroupRole
    cache: Path  # folder of embedded texts
    model_path: Path | None  # folder of the embedding model; None: the spec's model id is looked up
    device: str
    threads: int | None  # None leaves the number to torch


@dataclass(frozen=True, slots=True)
class Prepared:
    """The result of Prepare."""

    questions: int
    device: str


@dataclass(frozen=True, slots=True)
class Train:
    """The order to train for one round, and to write the update to `out`."""

    spec_sha256: Digest  # of a run that was prepared, as in the orders below
    base: Path  # the weights that training starts from
    out: Path
    seed: int
    round_number: int
    optimizer_state: Path  # read if it is there; the new state is written beside it
    residual: Path  # the same for what the encoding took from earlier updates


@dataclass(frozen=True, slots=True)
class TrainedUpdate:
    """The result of Train: the update is in the order's `out`."""

    digest: Digest
    examples: int
    metrics: Mapping[str, float]
    gpu_memory_bytes: int  # the most that training held; 0 without a GPU


@dataclass(frozen=True, slots=True)
class Reward:
    """The order to predict the group's shares of each prompt's candidates, and to write them to `out`."""

    spec_sha256: Digest
    weights: Path
    rollouts_json: str  # as rollout_batch reads it
    out: Path


@dataclass(frozen=True, slots=True)
class Rewards:
    """The result of Reward: the shares are in the order's `out`."""

    digest: Digest
    examples: int  # context questions


@dataclass(frozen=True, slots=True)
class Evaluate:
    """The order to score a model version on the group's own answers. Its result is Scores."""

    spec_sha256: Digest
    weights: Path


PREPARE = Command("prepare", Prepare, Prepared)
TRAIN = Command("train", Train, TrainedUpdate)
REWARD = Command("reward", Reward, Rewards)
EVALUATE = Command("evaluate", Evaluate, Scores)
