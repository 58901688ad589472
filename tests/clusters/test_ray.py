"""Experiments on a real Ray of this machine: the same files as without it, whatever happens to its workers.

Ray is an extra that `make test` does not install. Run these tests with `make ray`.
"""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_experiment import files_of, small_plan

from pluralllm.common.errors.tree import InvalidArgument, NotFinite
from pluralllm.experiment.engines.units import RayOptions
from pluralllm.experiment.play import Player
from pluralllm.experiment.runner import Plan, run_experiment

pytest.importorskip("ray", reason="Ray is not installed; make ray runs these tests")

psutil = pytest.importorskip("psutil")

from pluralllm.experiment.engines import ray_cluster  # noqa: E402 - it imports Ray

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def quiet(*_: object) -> None:
    pass


def inline(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """Returns the files of the same experiment, played unit by unit in this process with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    engine = OneByOne()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pluralllm.experiment.runner._engine", lambda _plan, _origin, player: engine.with_player(player))
        run_experiment(replace(plan, out=plan.out.with_name("inline")), quiet)
    torch.set_num_threads(threads)
    return files_of(plan.out.with_name("inline"))


class OneByOne:
    def with_player(self, player: Player) -> "OneByOne":
        self._player = player
        return self

    async def map(self, units: Any, _tell: Any) -> Any:
        for unit in units:
            yield unit, self._player.play(unit.method, unit.seed, quiet, quiet)


def without_machine(files: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """The baselines' headers name the driver's number of threads."""
    for records in files.values():
        records[0].pop("machine")
    return files


def test_one_worker_two_workers_and_no_ray_give_the_same_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(tmp_path, monkeypatch)
    expected = without_machine(inline(plan))
    assert len(expected) == 3 + 2 + 4
    reports: list[tuple[str, int, int]] = []
    for jobs in (1, 2):
        on_ray = replace(plan, out=plan.out.with_name(f"ray-{jobs}"), jobs=jobs, ray=RayOptions())
        run_experiment(on_ray, lambda *facts: reports.append(facts))
        assert without_machine(files_of(on_ray.out)) == expected
        assert reports[-1][1:] == (4000, 4000)


def test_a_killed_worker_changes_nothing_and_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = small_plan(tmp_path, monkeypatch, {"rounds": 150, "seeds": [0], "scoring": {"every": 50}})
    killed: list[int] = []

    def kill_once(what: str, *_: object) -> None:
        workers = [child for child in psutil.Process().children(recursive=True) if "ray::play_unit" in _title(child)]
        if "training" in what and workers and not killed:
            killed.append(workers[0].pid)
            os.kill(workers[0].pid, signal.SIGKILL)

    run_experiment(replace(plan, jobs=2, ray=RayOptions()), kill_once)
    assert killed
    assert "unit.retried" in capsys.readouterr().out
    assert without_machine(files_of(plan.out)) == without_machine(inline(plan))


def _title(process: Any) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_workers_of_other_versions_are_refused_or_named_in_the_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(small_plan(tmp_path, monkeypatch), only=("one",))
    here = ray_cluster.versions_here() | {"numpy": "1.0"}
    monkeypatch.setattr(ray_cluster, "versions_here", lambda: here)  # of the driver
    with pytest.raises(InvalidArgument, match=r"a worker that has numpy [\d.]+, here 1\.0.*--mixed"):
        run_experiment(replace(plan, ray=RayOptions()), quiet)
    run_experiment(replace(plan, ray=RayOptions(is_mixed=True)), quiet)
    (difference,) = files_of(plan.out)["one.seed0.jsonl"][0]["mixed"]
    assert difference.startswith("numpy ")


def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "nonsense", "ray://host:port"):
        with (
            pytest.raises(InvalidArgument, match=f"is '{address}', where no Ray answers"),
            ray_cluster.connected(RayOptions(address), 1),
        ):
            pass


def test_a_gpu_that_is_not_there_and_an_error_of_a_unit_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(tmp_path, monkeypatch, {"rounds": 5, "seeds": [0]})
    if not torch.cuda.is_available():
        with pytest.raises(InvalidArgument, match="this machine has 0 GPUs"):
            run_experiment(replace(plan, ray=RayOptions(gpus_per_unit=0.5)), quiet)
    first, _ = plan.experiment.methods
    diverging = first.spec | {"training": first.spec["training"] | {"optimizer": "sgd", "learning_rate": 1e30}}
    methods = (first.model_copy(update={"spec": diverging}),)
    with pytest.raises(NotFinite):
        run_experiment(
            replace(plan, experiment=plan.experiment.model_copy(update={"methods": methods}), ray=RayOptions()), quiet
        )
