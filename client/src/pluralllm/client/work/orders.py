"""The orders that the daemon gives to its worker process, and their results. Both ends of the pipe import this module.

Tensors travel as files: orders and results hold paths. The paths in an order are absolute.
"""

from dataclasses import dataclass, field
from pathlib import Path

from pluralllm.client.disclosure.measurements import MeasuredScores, MeasuredTraining
from pluralllm.client.work.commands import Command
from pluralllm.common.words.ids import Digest
from pluralllm.common.words.spec import GroupRole


@dataclass(frozen=True, slots=True)
class Prepare:
    """The order to read, check and embed the private data for one run. Only the first order for a run takes long."""

    spec_json: str  # canonical JSON; its SHA-256 names the run in the orders below
    data: Path  # the private file
    data_sha256: str  # of the content that the daemon has announced
    group: str
    role: GroupRole
    cache: Path  # folder of embedded texts
    model_path: Path | None  # folder of the embedding model; None: the spec's model id is looked up
    device: str
    threads: int | None  # None leaves the number to torch


@dataclass(frozen=True, slots=True)
class Prepared:
    """The result of Prepare: the number of the group's questions, and the device that the run trains on."""

    questions: int
    device: str
    not_seen: tuple[str, ...] = ()  # kinds of things that the embedding model cannot see in them (Blindness.kinds)


@dataclass(frozen=True, slots=True)
class Train:
    """The order to train for one round, and to write the update to the file `out`."""

    spec_sha256: Digest  # names a run that Prepare has prepared, as in the orders below
    base: Path  # the weights that training starts from
    out: Path
    seed: int
    round_number: int
    optimizer_state: Path  # read if it is there; the new state is written beside it
    residual: Path  # the same for the part of earlier updates that rounding took away


@dataclass(frozen=True, slots=True)
class TrainedUpdate:
    """The result of Train. The update itself is in the order's file `out`."""

    digest: Digest
    examples: int
    measured: MeasuredTraining
    gpu_memory_bytes: int  # largest number of bytes that training held on the GPU; 0 without a GPU


@dataclass(frozen=True, slots=True)
class Mask:
    """The order to turn a delta into numbers modulo 2^32, to mask them, and to write them to the file `out`.

    The keys of the streams are secrets of one private round: they travel over the pipe and nowhere else.
    """

    delta: Path  # of this round, in plain; whoever gives the order deletes it when the masked file is durable
    out: Path
    members: int  # of the round
    clip_norm: float
    most_weight: int  # weight of an update that counts in full
    weight: int  # of this update, 1 .. most_weight; of a term: the number of questions behind it
    most_metric_weight: int  # aggregation.max_examples
    metric_weight: int  # of the loss, 1 .. most_metric_weight
    distance_weight: int  # of the distance, 1 .. most_metric_weight
    loss: float | None  # None for a number that the policy keeps back
    base_distance: float | None
    score: float | None  # alignment score of the base version; None to leave it out
    streams: tuple[tuple[str, int], ...] = field(repr=False)  # key in hex, and 1 to add the stream or -1 to subtract it
    rounding: str = field(repr=False)  # seed in hex
    is_term: bool = False  # of a sum: it counts in full, and one longer than clip_norm is refused


@dataclass(frozen=True, slots=True)
class Masked:
    """The result of Mask. The masked update itself is in the order's file `out`."""

    digest: Digest
    is_clipped: bool  # whether the delta was scaled down to clip_norm


@dataclass(frozen=True, slots=True)
class Reward:
    """The order to predict the group's share for each candidate of each prompt, and to write the shares to the file `out`."""

    spec_sha256: Digest
    weights: Path
    rollouts_json: str  # the batch, in the JSON form that common.rewards.rollout_batch reads
    out: Path
    context_seed: int  # draws the context questions, the same in the whole run


@dataclass(frozen=True, slots=True)
class Rewards:
    """The result of Reward. The shares themselves are in the order's file `out`."""

    digest: Digest
    examples: int  # number of context questions


@dataclass(frozen=True, slots=True)
class Evaluate:
    """The order to score a model version on the group's own answers. The result is MeasuredScores."""

    spec_sha256: Digest
    weights: Path
    context_seed: int  # draws the context questions, the same in the whole run


PREPARE = Command("prepare", Prepare, Prepared)
TRAIN = Command("train", Train, TrainedUpdate)
MASK = Command("mask", Mask, Masked)
REWARD = Command("reward", Reward, Rewards)
EVALUATE = Command("evaluate", Evaluate, MeasuredScores)
