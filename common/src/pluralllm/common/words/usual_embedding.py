"""The usual embedding model: that of a new spec, and of a spec that names none."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pluralllm.common.words.spec import PRESETS, RunSpec, load_spec_values, preset_values, spec_from_values

MODEL, WIDTH = "sentence-transformers/all-MiniLM-L6-v2", 384  # its id, and the length of its vectors


def load_spec(path: Path) -> RunSpec:
    """Reads a spec from a TOML file. A preset gives the values that the file leaves out.

    The file may name the preset at the top, for example `preset = "paper"`. Otherwise the preset is "default". A file that names
    no embedding model gets the usual one.
    Raises InvalidSpec if the file cannot be read, or if the spec is not valid; the error names file, keys and allowed values.
    """
    return spec_from_values(with_usual_embedding(load_spec_values(path)), str(path))


def with_usual_embedding(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a spec with the usual embedding model, if they name no model, no plug-in and no dimension.

    values: as in a spec file, without the preset's values.
    """
    embedding, preset = values.get("embedding", {}), values.get("preset", "default")
    if preset not in PRESETS or not isinstance(embedding, dict) or {"model", "dimension", "plugin"} & embedding.keys():
        return dict(values)
    templates = embedding.get("templates")
    if not isinstance(templates, list | tuple):
        templates = preset_values(preset)["embedding"]["templates"]
    usual = {"model": MODEL, "dimension": WIDTH * len(templates)}
    return {**values, "embedding": {**embedding, **usual}}
