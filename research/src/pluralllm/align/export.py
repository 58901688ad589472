"""Exports a published model version from a federation as a Hugging Face folder, which PluralPredictor.from_pretrained reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pluralllm.align.model_card import model_card
from pluralllm.align.model_folder import CARD, CONFIG, PROVENANCE, model_config, provenance, scores_of, write_json
from pluralllm.common.process.files import write_durably
from pluralllm.common.words.context_gain import mean_gain
from pluralllm.common.words.ids import ModelVersion
from pluralllm.common.words.names import ModelName
from pluralllm.common.words.spec import parse_spec
from pluralllm.operator.remote import Remote


def export_model(
    connection: Remote, model: ModelName, folder: Path, on_bytes: Callable[[int, int], None]
) -> dict[str, Any]:
    """Writes the folder, and returns facts about the version: run, version, participants, updates, fairness and context gain.

    A model card, scores and the chain of versions lie beside the weights.
    on_bytes: callback (bytes done, bytes in all). Raises RoleForbids for an observer, and what Remote.pull_model raises.
    """
    record, _, spec_json = connection.model_record(model)
    exact = ModelName.parse(record["name"])
    run, spec = exact.run, parse_spec(spec_json, f"of run {exact.run}")
    versions = (ModelName(run, ModelVersion(number)) for number in range(record["version"] + 1))
    lineage = [connection.model_record(version)[0] for version in versions]
    scores = scores_of(record, lineage, connection.evaluations(run))
    people = connection.get_run(run)["participants"]
    origin = provenance(spec, record, lineage, connection.rounds(run), scores, people)
    # The weights come after all other answers: if the connection breaks, a model that was in the folder is still whole.
    connection.pull_model(exact, folder, on_bytes)
    write_durably(folder / PROVENANCE, write_json(origin))
    write_durably(folder / CARD, model_card(origin).encode())
    # config.json comes last: a folder without it is no model yet.
    gain = mean_gain(score["context_gain"] for score in scores)
    write_durably(folder / CONFIG, write_json(model_config(spec, run, record["version"], record["digest"], gain)))
    facts = {key: origin[key] for key in ("run", "version", "participants", "updates", "fairness_index")}
    return {**facts, "context_gain": gain}
