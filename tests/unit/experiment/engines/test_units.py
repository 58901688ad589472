"""Shards of an experiment have every unit once, and results of another unit are refused."""

from pathlib import Path
from typing import Any

import pytest

from pluralllm.common.errors.tree import InvalidArgument, WorkerDied
from pluralllm.experiment.engines.units import Shard, Unit, check_results
from pluralllm.experiment.records import Provenance
from pluralllm.experiment.spec import Experiment, Method

UNITS = [Unit(Method(name=name), seed) for seed in range(3) for name in ("a", "b", "c")]


@pytest.mark.parametrize("count", [1, 2, 4, 9, 12])
def test_the_shards_of_one_count_have_every_unit_once(count: int) -> None:
    shards = [Shard.parse(f"{index}/{count}").of(UNITS) for index in range(count)]
    assert sorted(str(unit) for shard in shards for unit in shard) == sorted(str(unit) for unit in UNITS)
    assert shards[0][0] == UNITS[0], "the first shard writes the baselines, with the first method's vectors"
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("text", ["", "1", "1/", "/2", "2/2", "-1/2", "0/0", "a/b", "1/2/3", "0.5/2"])
def test_a_shard_that_cannot_be_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"INDEX/COUNT .* for example 0/16"):
        Shard.parse(text)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"method": "b"}, "has another method"),
        ({"seed": 5}, "has another seed"),
        ({"kind": "point"}, "has another kind"),
        ({"experiment_sha256": "x"}, "has another experiment_sha256"),
        ({"data_sha256": "x"}, "has another data_sha256; did a data file change"),
    ],
)
def test_records_of_something_else_are_refused(change: dict[str, Any], problem: str | None) -> None:
    data = {"files": Path("none"), "train": ("x",), "test": ("y",)}
    experiment = Experiment.model_validate({"data": data, "methods": [{"name": "a", "adapt_steps": 1}]})
    unit, provenance = Unit(experiment.methods[0], 4), Provenance(experiment, "digest")
    first, second = unit.method.lines
    digests = {"experiment_sha256": experiment.sha256(), "data_sha256": "digest"}
    header = {"kind": "header", "method": first, "seed": 4, **digests}
    results: dict[str, Any] = {first: [header | change], second: [header | {"method": second}]}
    if problem is None:
        check_results(unit, results, provenance)
        no_records: tuple[Any, ...] = ([], None, ["header"])
        for records in no_records:
            with pytest.raises(WorkerDied):
                check_results(unit, results | {first: records}, provenance)
        with pytest.raises(WorkerDied, match="it returned the lines a for a, seed 4"):
            check_results(unit, {first: results[first]}, provenance)
    else:
        with pytest.raises(WorkerDied, match=problem):
            check_results(unit, results, provenance)
