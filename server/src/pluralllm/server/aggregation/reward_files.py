"""Checks a client's file of rewards when the file arrives, and combines the files of a round.

The functions block, so the coordinator calls them in a thread.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.process.files import storage_errors
from pluralllm.common.rewards.aggregation import combine
from pluralllm.common.rewards.rollout_batch import read_rollouts, sampled
from pluralllm.common.weights.chunks import Manifest
from pluralllm.common.weights.layout import flat_values, read_layout, rewards_layout, write_weights
from pluralllm.common.weights.stored_weights import StoredWeights, read_values
from pluralllm.common.words.reward_weights import RewardAggregation


def check_rewards(path: Path, rollouts: Path, max_candidates: int) -> float:
    """Checks one client's rewards and returns their mean over the batch, each candidate counted as often as it was sampled.

    The mean shows how well the language model serves the client's group.
    path: the file of rewards, whose size, names and dtypes have been checked before. rollouts: the file of the generated
    texts that the client has scored. max_candidates: the largest allowed number of candidates in the batch. Raises
    InvalidArgument for a reward outside 0 .. 1.
    """
    batch = read_rollouts(rollouts.read_bytes(), max_candidates)
    values = flat_values(path, read_layout(path))  # (candidates,)
    wrong = (values < 0) | (values > 1)
    if wrong.any():
        first = float(values[int(wrong.argmax())])
        raise InvalidArgument(field="rewards", problem=f"{int(wrong.sum())} are outside 0 .. 1, the first is {first:g}")
    return min(1.0, max(0.0, float(np.average(values.astype(np.float64), weights=sampled(batch)))))


def read_rewards(stored: StoredWeights) -> NDArray[np.float32]:
    """Reads a file with one reward for each candidate of the batch, and returns the rewards, shape (candidates,).

    The file's names, size and dtype were checked on arrival. Raises Corrupt if the file's bytes do not have its digest.
    """
    return read_values(stored)


def write_aggregate(
    updates: Sequence[StoredWeights], weights: Sequence[float], settings: RewardAggregation, draft: Path
) -> Manifest:
    """Combines a round's rewards into one file at `draft` and returns its manifest. The file is not yet durable.

    updates: the clients' files of rewards, sorted by client. weights: one weight for each file, in the order of `updates`.
    settings: the run spec's method of combining rewards. Raises Corrupt if a file's bytes do not have its digest; StorageFull
    if no space is left.
    """
    with storage_errors("the rewards"):
        rows = np.stack([read_rewards(update).astype(np.float64) for update in updates])  # (clients, candidates)
        combined = combine(settings, rows, np.array(weights)).astype(np.float32)
        return write_weights(draft, rewards_layout(combined.size), [combined])
