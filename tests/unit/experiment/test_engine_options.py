"""Options of `pluralllm experiment run` for engines: a wrong one is refused before any work."""

import importlib.util
import sys
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.small_experiment import small_plan

from pluralllm.common.errors.tree import ExtraMissing, InvalidArgument
from pluralllm.experiment import runner
from pluralllm.experiment.commands.experiment import _ray_options, run
from pluralllm.experiment.engines.units import RayOptions


def test_an_engine_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(InvalidArgument, match="is 'dask', allowed: processes, ray"):
        _ray_options("dask", None, 0.0, is_mixed=False)
    assert _ray_options("processes", None, 0.0, is_mixed=False) is None


@pytest.mark.parametrize(
    ("address", "gpus", "is_mixed", "embeds", "option"),
    [
        ("ray://a:1", 0.0, False, False, "--ray-address"),
        (None, 0.5, False, False, "--gpus-per-unit"),
        (None, 0.0, True, False, "--mixed"),
        (None, 0.0, False, True, "--embedding-on-ray"),
    ],
)
def test_an_option_of_ray_is_refused_for_processes(
    address: str | None, gpus: float, is_mixed: bool, embeds: bool, option: str
) -> None:
    with pytest.raises(InvalidArgument, match=f"{option}.* is for --engine ray"):
        _ray_options("processes", address, gpus, is_mixed=is_mixed, embeds=embeds)


def test_ray_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else usual(name))
    with pytest.raises(ExtraMissing, match="ray"):
        _ray_options("ray", None, 0.0, is_mixed=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: usual("json"))
    assert _ray_options("ray", "auto", 0.5, is_mixed=True) == RayOptions("auto", 0.5, True)
    assert _ray_options("ray", None, 0.0, is_mixed=False, embeds=True) == RayOptions(embeds=True)


@pytest.mark.parametrize("more", [{"embedding_workers": 2}, {"embedding_devices": "cuda:0,cuda:1"}])
def test_texts_are_embedded_either_on_the_cluster_or_on_this_machine(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    monkeypatch.setattr("pluralllm.experiment.commands.experiment.need_ray", lambda: None)
    with pytest.raises(InvalidArgument, match=r"--embedding-on-ray.* leave out --embedding-workers"):
        run(Path("experiment.toml"), engine="ray", embedding_on_ray=True, **more)


def test_the_cluster_fills_the_cache_if_it_is_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled: list[tuple[Any, ...]] = []
    on_ray = ModuleType("ray_embedding")
    monkeypatch.setattr(on_ray, "fill_on_ray", lambda *arguments: filled.append(arguments), raising=False)
    monkeypatch.setitem(sys.modules, "pluralllm.experiment.engines.ray_embedding", on_ray)
    plan = replace(small_plan(tmp_path, monkeypatch, {"seeds": [0]}), ray=RayOptions(embeds=True), jobs=3)
    monkeypatch.setattr(runner, "_engine", lambda *_: NoUnits())
    runner.run_experiment(plan, lambda *_: None)
    ((_, pieces, options, jobs, _),) = filled
    assert (options, jobs) == (plan.ray, 3)
    assert sum(len(piece.texts) for piece in pieces) > 30
    runner.run_experiment(replace(plan, ray=RayOptions()), lambda *_: None)
    assert len(filled) == 1


class NoUnits:
    async def map(self, units: Any, _tell: Any) -> AsyncGenerator[Any, None]:
        for unit in units[:0]:
            yield unit
