"""Contents of the Hugging Face folder that holds a published model version, and the check of its weights.

config.json            architecture, embedding section of the run spec, sha256 of the weights
model.safetensors      the weights, byte for byte as published
README.md              the model card
provenance.json        run spec, chain of model versions, number of participants, scores
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pluralllm.common import __version__
from pluralllm.common.errors.tree import InvalidModel
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.words.ids import Digest
from pluralllm.common.words.names import ModelName
from pluralllm.common.words.spec import RunSpec

FORMAT = "pluralllm.model/1"
CONFIG, WEIGHTS, CARD, PROVENANCE = "config.json", "model.safetensors", "README.md", "provenance.json"
SCORE_KEYS = ("group", "role", "alignment_score", "alignment_score_base2", "questions", "not_reported", "context_gain")
Values = Mapping[str, Any]


def model_config(
    spec: RunSpec, run: str, version: int, weights_sha256: str, context_gain: float | None = None
) -> dict[str, Any]:
    """Returns the content of config.json in the form that transformers reads.

    run, version: name of the run and number of its model version. weights_sha256: digest of the file of weights.
    context_gain: mean over the groups that report it; None if it was not measured.
    """
    return {
        "architectures": ["PluralPredictor"],
        "model_type": "pluralllm",
        "dtype": "float32",
        "format": FORMAT,
        "run": run,
        "version": version,
        "weights_sha256": weights_sha256,
        "predictor": spec.predictor.model_dump(mode="json"),
        "embedding": spec.embedding.model_dump(mode="json"),
        "context_questions": spec.evaluation.context_questions,
        "min_context": spec.training.episodes.min_context,
        "context_gain": context_gain,
        "release": __version__,
    }


def provenance(
    spec: RunSpec,
    record: Values,
    lineage: Sequence[Values],
    rounds: Sequence[Values],
    scores: Sequence[Values],
    people: Sequence[Values] = (),
) -> dict[str, Any]:
    """Returns the content of provenance.json, which describes how a model version was made.

    Participants are counted, not named, because their names must stay within the federation.
    record: the coordinator's record of the model version. lineage: the records of all versions from 0 on.
    rounds: the run's rounds with their receipts. scores: the evaluations of the model version; a group that does not report its
    scores has None in their place, and counts in neither fairness index nor coefficient of variation.
    people: the run's participants, with what they declare about noise.
    """
    from pluralllm.common.predictor.metrics import coefficient_of_variation, fairness_index  # noqa: PLC0415 - numpy, only here

    counted = [one for one in rounds if one["version"] is not None and one["version"] <= record["version"]]
    clients = {receipt["client"] for one in counted for receipt in one["receipts"]}
    values = [score["alignment_score"] for score in scores if score["alignment_score"] is not None]
    return {
        "format": FORMAT,
        "run": ModelName.parse(record["name"]).run,
        "version": record["version"],
        "record": dict(record),
        "run_spec_sha256": spec.sha256(),
        "run_spec": spec.model_dump(mode="json"),
        "lineage": [
            {key: one[key] for key in ("version", "round", "digest", "record_sha256", "parent_record_sha256")}
            for one in lineage
        ],
        "participants": len(clients),
        "updates": sum(len(one["receipts"]) for one in counted),
        "scores": [
            {key: score.get(key) for key in SCORE_KEYS}
            for score in sorted(scores, key=lambda score: (score["role"], score["group"]))
        ],
        "noise": [
            {"group": one["group"], "declared": one.get("noise")}
            for one in sorted(people, key=lambda one: one["group"])
            if one["client"] in clients
        ],
        "fairness_index": fairness_index(values) if values else None,
        "coefficient_of_variation": coefficient_of_variation(values) if values else None,
    }


def write_json(value: Values) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def check_weights(config: Values, weights: Path, folder: str) -> None:
    """Checks that this release can read a model folder's format and that its weights are the ones that were published.

    config: the content of config.json. weights: the file of weights. folder: the folder's name for the error message.
    Raises InvalidModel for another format, or if the weights' digest differs from the digest in config.json.
    """
    model_format = config.get("format")
    if model_format != FORMAT:
        newer = isinstance(model_format, str) and model_format.startswith("pluralllm.model/")
        fix = "upgrade pluralllm-client" if newer else "give a folder that pluralllm model export has written"
        raise InvalidModel(
            folder=folder, problem=f"its format is {model_format!r}, this release reads {FORMAT!r}; {fix}"
        )
    actual, expected = manifest_of(weights).digest, Digest(str(config.get("weights_sha256", "")))
    if actual != expected:
        problem = f"{weights.name} has digest {actual[:16]}, {CONFIG} says {expected[:16]}: it was changed, or is not complete"
        raise InvalidModel(folder=folder, problem=f"{problem}; export or fetch it again")
