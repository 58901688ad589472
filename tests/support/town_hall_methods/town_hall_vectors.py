"""An embedder without a model: the vector of a text counts its groups of three letters."""

from collections.abc import Callable, Sequence
from zlib import crc32

import numpy as np
from numpy.typing import NDArray


def letter_counts(device: str, width: str = "32") -> Callable[[Sequence[str]], NDArray[np.float32]]:
    """Returns the embedder. device: where it may compute; it needs none. width: length of a vector."""
    columns = int(width)

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns one vector for each text, which depends on this text alone. Shape: (texts, width)."""
        vectors = np.zeros((len(texts), columns), np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            letters = f" {text.lower()} "
            for start in range(len(letters) - 1):
                vector[crc32(letters[start : start + 3].encode()) % columns] += 1
        return vectors

    return embed
