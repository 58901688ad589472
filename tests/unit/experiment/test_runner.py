"""An experiment's driver writes the files: the same ones for the whole and for shards put together."""

import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from support.small_experiment import files_of, small_plan
from support.small_survey import DIMENSION

from pluralllm.common.errors.tree import InvalidArgument, WorkerDied
from pluralllm.common.words.embedding import Embedding
from pluralllm.experiment import runner, worker
from pluralllm.experiment.engines.units import Results, Shard, Tell, Unit
from pluralllm.experiment.orders import Fetch, Play
from pluralllm.experiment.runner import Plan, run_experiment

pytestmark = pytest.mark.seconds


def quiet(*_: object) -> None:
    pass


class InThisProcess:
    """Engine that plays units with the worker's own code, in this process."""

    def __init__(self, plan: Plan, changes: dict[str, Any]) -> None:
        self._worker, self._plan, self._changes = worker.Playing(), plan, changes

    async def map(self, units: Sequence[Unit], tell: Tell) -> AsyncGenerator[tuple[Unit, Results], None]:
        plan = self._plan
        for unit in units:
            experiment = plan.experiment.model_dump_json()
            order = Play(experiment, unit.method.name, unit.seed, plan.model_path, plan.cache, plan.device)
            pieces = self._worker.play(lambda *facts, unit=unit: tell(unit, *facts), order).pieces
            text = "".join(self._worker.fetch(quiet, Fetch(piece)).text for piece in range(pieces))
            results = json.loads(text)
            results[unit.method.name][0] |= self._changes
            yield unit, results


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr(runner, "_engine", lambda plan, *_: InThisProcess(plan, {}))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # of this process, which has other tests to run
    return small_plan(tmp_path, monkeypatch)


def test_shards_put_together_have_the_files_of_the_whole(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[tuple[str, int, int]] = []
    run_experiment(plan, lambda *facts: reported.append(facts))
    whole = files_of(plan.out)
    assert len(whole) == 3 + 2 + 4  # baselines, one line of the first method, two lines of the second
    assert reported[-1] == ("two, seed 1: training", 4000, 4000)
    monkeypatch.setattr(worker, "PIECE_CHARACTERS", 5000)
    shards = []
    for index in range(3):
        part = replace(plan, out=plan.out.with_name(f"shard-{index}"), shard=Shard(index, 3))
        run_experiment(part, quiet)
        shards.append(files_of(part.out))
    assert [len(shard) for shard in shards] == [3 + 1 + 2, 2, 1], "the baselines are in the first shard"
    assert {name: records for shard in shards for name, records in shard.items()} == whole


def test_what_is_there_is_not_played_again(plan: Plan) -> None:
    run_experiment(replace(plan, only=("one",), shard=Shard(1, 2)), quiet)
    kept = {path.name: path.stat().st_mtime_ns for path in plan.out.glob("*.jsonl")}
    assert list(kept) == ["one.seed1.jsonl"]
    played: list[str] = []
    run_experiment(replace(plan, only=("one",)), lambda what, *_: played.append(what))
    assert not [what for what in played if "seed 1" in what]
    assert {name: (plan.out / name).stat().st_mtime_ns for name in kept} == kept


@pytest.mark.parametrize(("templates", "times"), [(["{option}"], 2), (["{question}"], 1)])
def test_the_cache_is_filled_once_for_each_embedding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, templates: list[str], times: int
) -> None:
    embedding = {"dimension": DIMENSION, "templates": ["{question}"]}
    method = {"preset": "paper", "spec": {"embedding": embedding}}
    second = {"preset": "paper", "spec": {"embedding": {**embedding, "templates": templates}}}
    methods = [{"name": "one", **method}, {"name": "two", **second}, {"name": "three", **method}]
    plan = replace(small_plan(tmp_path, monkeypatch, {"methods": methods}), embedding=cast(Any, object()))
    filled: list[Embedding] = []
    monkeypatch.setattr(runner, "fill_cache", lambda contract, *_: filled.append(contract))
    monkeypatch.setattr(runner, "is_done", lambda *_: True)
    monkeypatch.setattr(runner, "_engine", lambda plan, *_: InThisProcess(plan, {}))
    run_experiment(plan, quiet)
    assert len(filled) == len(set(filled)) == times


def test_records_of_other_data_are_not_written(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_engine", lambda plan, *_: InThisProcess(plan, {"data_sha256": "other"}))
    with pytest.raises(WorkerDied, match="did a data file change"):
        run_experiment(plan, quiet)
    assert not list(plan.out.glob("one*"))


def test_a_piece_that_is_not_there_is_refused() -> None:
    for piece in (-1, 0, 1):
        with pytest.raises(InvalidArgument, match="has no such piece"):
            worker.Playing().fetch(quiet, Fetch(piece))
