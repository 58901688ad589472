"""Saves a published model version as files: its weights, its run spec and the record of how it was made."""

import json
from collections.abc import Callable
from pathlib import Path

from pluralllm.common.process.files import write_durably
from pluralllm.common.words.names import ModelName
from pluralllm.operator.plain_values import Values
from pluralllm.operator.remote import Remote

SPEC, RECORD = "run_spec.json", "provenance.json"


def save_model(connection: Remote, model: ModelName, folder: Path, on_bytes: Callable[[int, int], None]) -> Values:
    """Writes model.safetensors, run_spec.json and provenance.json into a folder, and returns the version's record.

    on_bytes: callback (bytes done, bytes in all). Raises what Remote.pull_model raises.
    """
    record, spec_json = connection.pull_model(model, folder, on_bytes)
    write_durably(folder / SPEC, spec_json)
    write_durably(folder / RECORD, json.dumps(record, indent=2).encode())
    return record
