"""A model folder as an export writes it, with a small predictor for the vectors of a tiny embedding model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.process_harness import process_spec
from support.small_survey import write_version_0

from pluralllm.align.model_card import model_card
from pluralllm.align.model_folder import CARD, CONFIG, PROVENANCE, WEIGHTS, model_config, provenance, write_json
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.words.spec import RunSpec

SPEC = process_spec(training={"episodes": {"min_context": 5}})


def export(
    folder: Path,
    spec: RunSpec = SPEC,
    weights: Path | None = None,
    more_scores: Sequence[dict[str, Any]] = (),
    context_gain: float | None = 0.02,
) -> Path:
    """Writes the model folder; without `weights` it gets the spec's first weights. It has two scores and `more_scores`."""
    folder.mkdir(parents=True, exist_ok=True)
    if weights is None:
        write_version_0(folder / WEIGHTS, spec)
    else:
        (folder / WEIGHTS).write_bytes(weights.read_bytes())
    digest = manifest_of(folder / WEIGHTS).digest
    record: dict[str, Any] = {
        "name": "runs/r/models/0",
        "version": 0,
        "round": 0,
        "digest": digest,
        "record_sha256": "c" * 64,
        "parent_record_sha256": "",
    }
    scores = [
        {
            "group": name,
            "role": role,
            "alignment_score": score,
            "alignment_score_base2": score,
            "questions": 9,
            "version": 0,
            "not_reported": "unspecified",
            "context_gain": context_gain,
        }
        for name, role, score in (("Northmark", "train", 0.8), ("Gold|crest", "held_out", 0.6))
    ]
    scores += more_scores
    origin = provenance(spec, record, [record], [], scores)
    (folder / PROVENANCE).write_bytes(write_json(origin))
    (folder / CARD).write_text(model_card(origin))
    (folder / CONFIG).write_bytes(write_json(model_config(spec, "r", 0, digest, context_gain)))
    return folder
