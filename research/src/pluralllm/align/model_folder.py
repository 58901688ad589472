"""Contents of the Hugging Face folder that holds a published model version, and the check of its weights.

config.json            architecture, embedding section of the run spec, sha256 of the weights
model.safetensors      the weights, byte for byte as published; save_pretrained may split or rename them
README.md              the model card
provenance.json        run spec, chain of model versions, number of participants, scores
"""

import hashlib
import json
import re
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
    record: the coordinator's record of the model version. lineage: the records of all versions from 0 to this one.
    rounds: the run's rounds with their receipts. scores: the evaluations of the model version; a group that does not report its
    scores has None in their place, and counts in neither fairness index nor coefficient of variation.
    people: the run's participants, with what they declare about noise.
    """
    from pluralllm.common.predictor.metrics import coefficient_of_variation, fairness_index  # noqa: PLC0415 - numpy, only here

    trained = {one["version"] for one in lineage if not spec.is_closing_round(one["round"])}
    counted = [one for one in rounds if one["version"] in trained]
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


def scores_of(record: Values, lineage: Sequence[Values], evaluations: Sequence[Values]) -> list[Values]:
    """Returns the evaluations of a model version. The version of a closing round is the model of the version before, unchanged.

    record, lineage: as for `provenance`. evaluations: of all versions of the run.
    """
    same = {one["version"] for one in lineage if one["digest"] == record["digest"]}
    found = [score for score in evaluations if score["version"] in same]
    newest = max((score["version"] for score in found), default=None)
    return [score for score in found if score["version"] == newest]


def write_json(value: Values) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def weights_files(config: Any, variant: str | None = None) -> list[str]:
    """Returns the names of the files of weights that config.json lists for a variant; model.safetensors if it lists none.

    variant: as transformers uses it, a part of the file names, for example fp16 in model.fp16.safetensors. Weights are one file,
    or several with numbers, such as model.fp16-00001-of-00002.safetensors.
    Raises ValueError if config.json lists files, and none for the variant.
    """
    listed = config.get("weights_files") if isinstance(config, dict) else None
    start = "model" if variant is None else f"model.{variant}"
    if not isinstance(listed, dict) or not listed:
        return [f"{start}.safetensors"]
    if f"{start}.safetensors" in listed:
        return [f"{start}.safetensors"]
    shard = re.compile(rf"{re.escape(start)}-\d{{5}}-of-\d{{5}}\.safetensors")
    shards = sorted(name for name in listed if shard.fullmatch(name))
    if not shards or any(int(name.split("-of-")[1][:5]) != len(shards) for name in shards):
        what = "no whole set of weights" if variant is None else f"no weights of variant {variant!r}"
        raise ValueError(f"it has {what}; {CONFIG} lists {', '.join(sorted(listed))}")
    return shards


def digest_of_all(digests: Mapping[str, str]) -> str:
    """Returns one digest for several files of weights: the SHA-256 of lines with each file's digest and name."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def check_weights(config: Values, weights: Sequence[Path], folder: str) -> None:
    """Checks that this release can read a model folder's format and that its weights are the ones that were published.

    config: the content of config.json. weights: the files of weights. folder: the folder's name for the error message.
    Raises InvalidModel for another format, or if a file's digest differs from the digest in config.json.
    """
    model_format = config.get("format")
    if model_format != FORMAT:
        newer = isinstance(model_format, str) and model_format.startswith("pluralllm.model/")
        fix = "upgrade pluralllm-client" if newer else "give a folder that pluralllm model export has written"
        raise InvalidModel(
            folder=folder, problem=f"its format is {model_format!r}, this release reads {FORMAT!r}; {fix}"
        )
    listed = config.get("weights_files") or {WEIGHTS: config.get("weights_sha256", "")}
    for file in weights:
        actual, expected = manifest_of(file).digest, Digest(str(listed.get(file.name, "")))
        if actual != expected:
            problem = f"{file.name} has digest {actual[:16]}, {CONFIG} says {expected[:16]}: it was changed, or is not complete"
            raise InvalidModel(folder=folder, problem=f"{problem}; export or fetch it again")
