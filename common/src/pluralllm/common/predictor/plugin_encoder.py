"""Turns texts into vectors with the embedder of another package, which the run spec's table [embedding.plugin] names.

The package's function gets the device's name and the options, and returns a function from texts to vectors. It takes the place
of the transformer and nothing else: the cache, the probes, the scaling and the check for NaN are the same.
"""

import json
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pluralllm.common.predictor.blindness import TokenCount
from pluralllm.common.predictor.encoder import Batch, pieces_of
from pluralllm.common.process.plugin_arrays import array_from
from pluralllm.common.process.plugins import EMBEDDERS, blamed, broken, find_plugin, make_plugin
from pluralllm.common.words.plugins import Plugin

TEXTS_IN_BATCH = 256
NOT_COUNTED = TokenCount(0, 0, 0)  # a plug-in says nothing about tokens


class PluginEncoder:
    """A plug-in on one device. It has the method `encode` of the encoder, and no more."""

    def __init__(self, plugin: Plugin, width: int, device: torch.device) -> None:
        """Loads the plug-in. width: length of a text's vector.

        Raises PluginMissing if its package is not installed in the spec's version; PluginBroken if it cannot be loaded.
        """
        self._plugin, self._width = plugin, width
        self._embed: Callable[[Sequence[str]], object] = make_plugin(EMBEDDERS, plugin, str(device))
        if not callable(self._embed):
            problem = f"it returned {type(self._embed).__name__}, not a function of texts"
            raise broken(EMBEDDERS, plugin, problem)

    def encode(self, texts: Sequence[str], is_wanted: Callable[[str], bool] = lambda _text: True) -> Iterator[Batch]:
        """Yields the texts in batches, with their vectors. The batches follow from `texts` alone.

        is_wanted: a batch without a wanted text is left out. Shapes: vectors (R, w) float32, with R texts in the batch.
        Raises PluginBroken if the plug-in fails, or returns something else.
        """
        for piece in pieces_of(texts):
            for start in range(0, len(piece), TEXTS_IN_BATCH):
                batch = list(piece[start : start + TEXTS_IN_BATCH])
                if any(map(is_wanted, batch)):
                    yield batch, self._vectors(batch), [NOT_COUNTED] * len(batch)

    def _vectors(self, texts: list[str]) -> NDArray[np.float32]:
        batch = tuple(texts)
        with blamed(EMBEDDERS, self._plugin):
            embedded = self._embed(batch)
        vectors = array_from(EMBEDDERS, self._plugin, embedded, np.float32)
        if vectors.shape != (len(texts), self._width):
            problem = f"it returned the shape {vectors.shape} for {len(texts)} texts, not {(len(texts), self._width)}"
            raise broken(EMBEDDERS, self._plugin, f"{problem}; embedding.dimension and its options must agree")
        return vectors.copy()


def plugin_key(plugin: Plugin) -> str:
    """Returns a text that changes with the plug-in, its options, and the list of files that the installation has written.

    Raises PluginMissing if its package is not installed in the spec's version. Nothing is imported.
    """
    package, _ = find_plugin(EMBEDDERS, plugin)
    listed = [f"{file}={file.hash.value if file.hash else ''}" for file in package.files or ()]
    return json.dumps([plugin.model_dump(mode="json"), sorted(listed)], sort_keys=True)
