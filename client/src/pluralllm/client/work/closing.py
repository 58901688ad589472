"""Makes the update of a closing round, in which nobody trains: a delta whose values are all 0."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pluralllm.client.disclosure.measurements import MeasuredTraining
from pluralllm.client.work.orders import TrainedUpdate
from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.weights.layout import write_weights
from pluralllm.common.words.spec import RunSpec

PIECE = 256 * 1024  # values


def untrained(spec: RunSpec, out: Path) -> TrainedUpdate:
    """Writes a delta of zeros to the file `out`. It counts as one example, so that it tells nothing about its client.

    Raises OSError of a disk that fails.
    """
    layout = layout_for(spec)
    manifest = write_weights(out, layout, _zeros(layout.values))
    return TrainedUpdate(manifest.digest, 1, MeasuredTraining(math.nan, math.nan, 0, 0), 0)


def _zeros(values: int) -> Iterator[NDArray[np.float32]]:
    """Yields `values` zeros in pieces. Shapes: (k,), at most PIECE."""
    piece = np.zeros(min(PIECE, values), np.float32)
    for start in range(0, values, PIECE):
        yield piece[: values - start]
