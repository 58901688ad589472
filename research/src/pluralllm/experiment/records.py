"""Writes an experiment's results: one JSON Lines file for each method and seed.

A file is complete or does not exist. The header of a file holds everything that is needed to repeat the result.
"""

import importlib.metadata
import json
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pluralllm.common.errors.tree import InvalidResults, InvalidSpec
from pluralllm.common.predictor.data import GroupData
from pluralllm.common.process.files import write_durably
from pluralllm.common.text.reading import byte_lines, json_value
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment.results import QuestionKind
from pluralllm.experiment.scoring import Scored
from pluralllm.experiment.spec import Experiment, slug_of

PACKAGES = (
    *("pluralllm-common", "pluralllm-client", "pluralllm-server", "pluralllm-research"),
    *("torch", "numpy", "transformers"),
)
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Provenance:
    """Origin of a result: the experiment, and the digest of the data.

    Results with the same provenance belong to the same experiment.
    """

    experiment: Experiment
    data_sha256: str

    def header(
        self, method: str, kind: str, seed: int, spec: RunSpec | None, embedding_sha256: str, device: torch.device
    ) -> Record:
        """Returns the first record of a result file.

        kind: the method's kind, or "baseline". spec: the run spec, or None for a baseline, which trains nothing.
        """
        return {
            "kind": "header",
            "method": method,
            "method_kind": kind,
            "seed": seed,
            "experiment": self.experiment.portable(),
            "experiment_sha256": self.experiment.sha256(),
            "data_sha256": self.data_sha256,
            "spec_sha256": "" if spec is None else spec.sha256(),
            "spec": None if spec is None else spec.model_dump(mode="json"),
            "embedding_sha256": embedding_sha256,
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "python": platform.python_version(),
            "machine": _machine(device),
        }


def file_of(folder: Path, method: str, seed: int) -> Path:
    return folder / f"{slug_of(method)}.seed{seed}.jsonl"


def is_done(path: Path, provenance: Provenance) -> bool:
    """Returns whether the result file was already written.

    Raises InvalidSpec if the file is the result of another experiment or of other data; InvalidResults if it is damaged.
    """
    if not path.is_file():
        return False
    try:
        header = json_value(next(byte_lines(path), b""))
        digests = (header["experiment_sha256"], header["data_sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidResults(
            path=str(path), problem="it is damaged; delete it: the same command makes it again"
        ) from error
    if digests != (provenance.experiment.sha256(), provenance.data_sha256):
        problem = f"  {path} is the result of another experiment or other data; give another --out"
        raise InvalidSpec(file="--out", problems=problem)
    return True


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Writes a result file completely or not at all. Raises StorageFull if the disk is full.

    If the process is killed before the file is written, a later call plays the method again and gets the same figures.
    """
    lines = (json.dumps(record, separators=(",", ":"), ensure_ascii=False) for record in records)
    write_durably(path, ("\n".join(lines) + "\n").encode())


def final_record(
    data: GroupData,
    group_part: str,
    context: int,
    draws: Sequence[Sequence[Scored]],
    kind_of: Callable[[GroupData, int], QuestionKind],
) -> Record:
    """Returns the record of a group's scored questions, for one number of context questions.

    draws: for each random choice of the context questions, the scores of the target questions.
    kind_of: returns whether training could use a question.
    For each scored question the record has a row: id, kind, distance, logarithm of the predicted standard deviation, and
    error.
    """
    rows = [
        [
            [
                data.questions[score.question].id,
                kind_of(data, score.question),
                round(score.distance, 6),
                _rounded(score.log_std),
                round(score.error, 6),
            ]
            for score in draw
        ]
        for draw in draws
    ]
    return {"kind": "final", "group": data.group, "part": group_part, "context": context, "draws": rows}


def options_record(groups: Iterable[GroupData]) -> Record:
    """Returns the record of the number of options of every question of these groups, by the question's id."""
    counts = {question.id: len(question.options) for data in groups for question in data.questions}
    return {"kind": "options", "counts": counts}


def gain_record(data: GroupData, group_part: str, context: int, own: float, another: float) -> Record:
    """Returns the record of a group's alignment scores with its own context and with other groups' contexts.

    group_part: train, validation or test. context: number of context questions.
    """
    scores = {"own": round(own, 6), "another": round(another, 6)}
    return {"kind": "context_gain", "group": data.group, "part": group_part, "context": context, **scores}


def distribution_record(
    data: GroupData, group_part: str, context: int, number: int, shares: NDArray[np.float32]
) -> Record:
    """Returns the record of the predicted and true shares of one question, with the question's text, which is public survey data.

    group_part: train, validation or test. number: the question's number within the group. shares: the predicted shares.
    """
    question = data.questions[number]
    return {
        "kind": "distribution",
        "group": data.group,
        "part": group_part,
        "context": context,
        "question": question.id,
        "question_text": question.text,
        "options": list(question.options),
        "true": [round(share, 4) for share in question.shares],
        "predicted": [round(float(share), 4) for share in shares],
    }


def _machine(device: torch.device) -> str:
    threads = torch.get_num_threads()
    used = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{platform.system()} {platform.machine()}, {used}, {threads} thread{'s' * (threads != 1)} of a process"


def _rounded(value: float) -> float | None:
    return None if value != value else round(value, 4)  # noqa: PLR0124 - NaN: nothing was predicted
