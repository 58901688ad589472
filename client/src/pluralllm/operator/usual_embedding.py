"""The usual embedding model: that of a new spec, and of a spec that names none."""

from collections.abc import Mapping
from typing import Any

from pluralllm.common.words.spec import PRESETS, preset_values

MODEL, WIDTH = "sentence-transformers/all-MiniLM-L6-v2", 384  # its id, and the length of its vectors


def with_usual_embedding(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a spec with the usual embedding model, if they name neither a model nor a dimension.

    values: as in a spec file, without the preset's values.
    """
    embedding, preset = values.get("embedding", {}), values.get("preset", "default")
    if preset not in PRESETS or not isinstance(embedding, dict) or {"model", "dimension"} & embedding.keys():
        return dict(values)
    templates = embedding.get("templates")
    if not isinstance(templates, list | tuple):
        templates = preset_values(preset)["embedding"]["templates"]
    usual = {"model": MODEL, "dimension": WIDTH * len(templates)}
    return {**values, "embedding": {**embedding, **usual}}
