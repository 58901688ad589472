"""Options of `pluralllm experiment run` for engines: a wrong one is refused before any work."""

import importlib.util

import pytest

from pluralllm.common.errors.tree import ExtraMissing, InvalidArgument
from pluralllm.experiment.commands.experiment import _ray_options
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
