"""Worker processes of an experiment: a worker that dies is replaced, and nothing that is done is lost.

The worker is a fake one, which speaks the pipe's language and starts quickly.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from pluralllm.common.errors.tree import InvalidSpec, WorkerDied
from pluralllm.experiment.engines.processes import Processes
from pluralllm.experiment.engines.units import Results, Unit
from pluralllm.experiment.orders import Play
from pluralllm.experiment.spec import Method

pytestmark = pytest.mark.seconds
# A method's name says what its worker does the first time: "dies", "dies always", "fails", "refuses" or plays the unit.
WORKER = """
import json, os, pathlib, sys
def answer(order, **what):
    print(json.dumps({"id": order["id"], **what}), flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if order["do"] == "play":
        name, seed = order["order"]["method"], order["order"]["seed"]
        answer(order, progress=["training", 1, 2])
        with (pathlib.Path(sys.argv[1]) / f"{name}-{seed}").open("a") as file:
            file.write(f"{os.getpid()} ")
        began = len((pathlib.Path(sys.argv[1]) / f"{name}-{seed}").read_text().split())
        if name == "dies always" or (name == "dies" and began == 1):
            os._exit(7)
        elif name == "fails":
            answer(order, error=["WORKER_DIED", {"problem": "a KeyError"}])
        elif name == "refuses":
            answer(order, error=["INVALID_SPEC", {"file": "f", "problems": "p"}])
        text = json.dumps({name: [{"kind": "header", "seed": seed, "who": "\\u00e9"}]})
        if name not in ("fails", "refuses"):
            answer(order, result={"pieces": 2})
    elif order["do"] == "fetch":
        piece = order["order"]["piece"]
        answer(order, result={"text": "{" if name == "broken" else text[20 * piece : 20 if piece == 0 else None]})
"""


def play(
    folder: Path, names: Sequence[str], jobs: int = 1, reported: list[tuple[Any, ...]] | None = None
) -> list[tuple[Unit, Results]]:
    script = folder / "worker.py"
    script.write_text(WORKER)
    units = [Unit(Method(name=name), seed) for seed, name in enumerate(names)]
    order = Play(experiment_json="{}", method="", seed=0, model_path=None, cache=folder, device="cpu")
    engine = Processes(order, jobs, (sys.executable, "-S", str(script), str(folder)))
    results: list[tuple[Unit, Results]] = []

    async def collect() -> None:
        async with aclosing(
            engine.map(units, lambda *facts: None if reported is None else reported.append(facts))
        ) as played:
            async for unit, records in played:
                results.append((unit, records))

    try:
        asyncio.run(collect())
    except (WorkerDied, InvalidSpec) as error:
        error.add_note(json.dumps([unit.method.name for unit, _ in results]))
        raise
    return results


def pids(folder: Path, name: str, seed: int) -> list[str]:
    return (folder / f"{name}-{seed}").read_text().split()


def test_every_unit_is_played_once_and_its_records_come_in_pieces(tmp_path: Path) -> None:
    reported: list[tuple[Any, ...]] = []
    played = play(tmp_path, ["a", "b", "c"], jobs=2, reported=reported)
    assert {unit.method.name: records for unit, records in played} == {
        name: {name: [{"kind": "header", "seed": seed, "who": "é"}]} for seed, name in enumerate(["a", "b", "c"])
    }
    assert sorted((str(unit), *rest) for unit, *rest in reported) == [
        (f"{name}, seed {seed}", "training", 1, 2) for seed, name in enumerate(["a", "b", "c"])
    ]
    workers = [pids(tmp_path, name, seed) for seed, name in enumerate(["a", "b", "c"])]
    assert all(len(who) == 1 for who in workers)
    assert len({who[0] for who in workers}) == 2, "two processes, and one of them played two units"


def test_a_unit_whose_worker_dies_is_played_again_by_a_new_worker(tmp_path: Path) -> None:
    with capture_logs() as logs:
        played = play(tmp_path, ["dies", "b"])
    assert [unit.method.name for unit, _ in played] == ["dies", "b"]
    first, second = pids(tmp_path, "dies", 0)
    assert first != second
    assert pids(tmp_path, "b", 1) == [second], "the new worker goes on"
    assert ["exit code 7" in str(entry) for entry in logs if entry["event"] == "unit.retried"] == [True]


def test_a_unit_that_ends_three_workers_ends_the_experiment(tmp_path: Path) -> None:
    with pytest.raises(WorkerDied, match=r"exit code 7, 3 times in dies always, seed 1.*--jobs") as raised:
        play(tmp_path, ["a", "dies always", "never"])
    assert len(pids(tmp_path, "dies always", 1)) == 3
    assert raised.value.__notes__ == ['["a"]'], "what was done before is kept"
    assert not (tmp_path / "never-2").exists()


def test_an_error_that_a_living_worker_reports_is_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(WorkerDied, match="a KeyError"):
        play(tmp_path, ["fails"])
    with pytest.raises(InvalidSpec):
        play(tmp_path, ["refuses"])
    assert [len(pids(tmp_path, name, 0)) for name in ("fails", "refuses")] == [1, 1]


def test_a_result_that_is_not_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkerDied, match="broken, seed 0 is not JSON"):
        play(tmp_path, ["broken"])


def test_no_process_is_left_when_the_caller_stops(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec):
        play(tmp_path, ["a", "refuses", "b"], jobs=2)
    everyone = {pid for path in tmp_path.glob("*-?") for pid in path.read_text().split()}
    assert everyone
    assert not [pid for pid in everyone if Path(f"/proc/{pid}").exists()]
