"""A small experiment with two methods and two seeds, whose groups are embedded already."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.small_survey import DIMENSION, KERNEL, SMALL, small_group

from pluralllm.client.data.private_data import write_group
from pluralllm.common.words.spec import merge
from pluralllm.experiment import play
from pluralllm.experiment.runner import Plan
from pluralllm.experiment.spec import Experiment

GROUPS = ("north", "south", "west", "far")


def small_plan(folder: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any] | None = None) -> Plan:
    """Returns a plan with results in `folder`/out. changes: values of the experiment that differ."""
    (folder / "survey").mkdir()
    for seed, name in enumerate(GROUPS):
        write_group(folder / "survey" / f"{name}.jsonl", small_group(name, questions=30, seed=seed).questions)
    embedded = {name: small_group(name, questions=30, seed=seed) for seed, name in enumerate(GROUPS)}
    spec = {"training": SMALL["training"], "embedding": {"dimension": DIMENSION}, "predictor": KERNEL}
    values: dict[str, Any] = {
        "model": "m",
        "width": DIMENSION,
        "seeds": [0, 1],
        "rounds": 1,
        "data": {"files": folder / "survey", "train": GROUPS[:2], "test": GROUPS[2:]},
        "scoring": {"contexts": [6], "main_context": 6, "draws": 1, "curve_draws": 1, "holdout_share": 0.25},
        "methods": [
            {"name": name, "preset": "fourier", "spec": spec, **more}
            for name, more in {"one": {}, "two": {"adapt_steps": 1}}.items()
        ],
    }
    monkeypatch.setattr(play, "embed_groups", lambda *_: embedded)
    experiment = Experiment.model_validate(merge(values, changes or {}))
    return Plan(experiment, folder / "out", None, folder / "cache", "cpu", 1)


def files_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns the records of each file, without the seconds that the training took."""
    read = {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("*.jsonl")}
    for records in read.values():
        for record in records:
            record.pop("seconds", None)
    return read
