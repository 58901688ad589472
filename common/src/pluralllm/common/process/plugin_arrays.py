"""The check of an array that a plug-in has returned. It is apart from plugins.py, which commands import, because of numpy."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.process.plugins import PluginKind, broken
from pluralllm.common.words.plugins import Plugin


def array_from(
    kind: PluginKind, plugin: Plugin, values: object, *types: type[np.floating[Any]]
) -> NDArray[np.floating[Any]]:
    """Returns `values`, which a plug-in has returned. Raises PluginBroken if they are no array of one of these types."""
    # No subclass: a mask, for one, would hide NaN from every check.
    if type(values) is np.ndarray and values.dtype in types:
        return values
    what = values.dtype if type(values) is np.ndarray else type(values).__name__
    names = " or ".join(allowed.__name__ for allowed in types)
    raise broken(kind, plugin, f"it returned {what}, not an array of {names}")
