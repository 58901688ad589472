"""An experiment's results: one JSON Lines file for each method and seed, whole or not there, with all it takes to repeat it."""

import importlib.metadata
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pluralllm.common.errors.tree import InvalidSpec
from pluralllm.common.predictor.data import GroupData
from pluralllm.common.process.files import write_durably
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment.results import QuestionKind
from pluralllm.experiment.scoring import Scored
from pluralllm.experiment.spec import Experiment, slug_of

PACKAGES = ("pluralllm-common", "pluralllm-client", "pluralllm-server", "torch", "numpy", "transformers")
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a result depends on. Two results with the same one are of the same experiment."""

    experiment: Experiment
    data_sha256: str

    def header(
        self, method: str, kind: str, seed: int, spec: RunSpec | None, embedding_sha256: str, device: torch.device
    ) -> Record:
        """The first record of a file; `kind` is the method's, or baseline. `spec` is None where nothing is trained."""
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
    """Whether this result is there already. Raises InvalidSpec if it is another experiment's."""
    if not path.is_file():
        return False
    with path.open(encoding="utf-8") as file:
        header = json.loads(file.readline())
    known = (header["experiment_sha256"], header["data_sha256"])
    if known != (provenance.experiment.sha256(), provenance.data_sha256):
        problem = f"  {path} is the result of another experiment or other data; give another --out"
        raise InvalidSpec(file="--out", problems=problem)
    return True


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Whole or not at all: a run that is killed is made again, with the same figures. Raises StorageFull."""
    lines = (json.dumps(record, separators=(",", ":"), ensure_ascii=False) for record in records)
    write_durably(path, ("\n".join(lines) + "\n").encode())


def final_record(
    data: GroupData,
    part: str,
    context: int,
    draws: Sequence[Sequence[Scored]],
    kind_of: Callable[[GroupData, int], QuestionKind],
) -> Record:
    """Every scored question of a group at one size of context.

    Columns: question id, its kind, distance, log std, error.
    """
    rows = [
        [
            [
                data.questions[each.question].id,
                kind_of(data, each.question),
                round(each.distance, 6),
                _rounded(each.log_std),
                round(each.error, 6),
            ]
            for each in draw
        ]
        for draw in draws
    ]
    return {"kind": "final", "group": data.group, "part": part, "context": context, "draws": rows}


def distribution_record(data: GroupData, part: str, context: int, number: int, shares: NDArray[np.float32]) -> Record:
    """A question's predicted shares beside the true ones. The survey is public: this text leaves with the results."""
    question = data.questions[number]
    return {
        "kind": "distribution",
        "group": data.group,
        "part": part,
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
