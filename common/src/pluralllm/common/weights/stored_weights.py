"""Sources of a model's values: a file whose bytes must have a digest, or one number for all values."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.weights.chunks import HashingReader
from pluralllm.common.weights.update_format import SliceReader, UpdateFormat
from pluralllm.common.words.ids import Digest

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """A file of weights or of an update, and the digest that its bytes must have."""

    path: Path
    digest: Digest


@dataclass(frozen=True, slots=True)
class EqualValues:
    """A source of values that is read like a file, but all its values are one number."""

    value: float

    def read(self, row: Floats) -> None:
        """Fills the array `row` with the number."""
        row.fill(self.value)


def open_source(
    source: StoredWeights | float, form: UpdateFormat, stack: ExitStack, files: list[HashingReader]
) -> SliceReader | EqualValues:
    """Opens a source of values for reading. An opened file stays open until `stack` is closed.

    source: a file, or one number that stands for all values. form: the format of a file. An opened file is added to the list
    `files`, so that the caller can check the file's digest at the end.
    """
    if isinstance(source, float):
        return EqualValues(source)
    file = stack.enter_context(HashingReader(source.path, source.digest))
    files.append(file)
    file.read_into(np.empty(len(form.header), np.uint8))  # the digest covers these bytes, too
    return SliceReader(form, file.read_into)


def read_values(stored: StoredWeights) -> Floats:
    """Reads a whole file of float32 values, whose header was checked on arrival, and returns them as one array.

    Raises Corrupt if the file's bytes do not have its digest.
    """
    raw = np.empty(stored.path.stat().st_size, np.uint8)
    with HashingReader(stored.path, stored.digest) as file:
        file.read_into(raw)
        file.check()
    return np.frombuffer(raw, "<f4", offset=8 + int.from_bytes(raw[:8].tobytes(), "little"))
