"""The check for packages that a light install leaves out."""

import importlib.util

from pluralllm.common.errors.tree import ExtraMissing


def need_torch(distribution: str = "client", extra: str = "train") -> None:
    """Raises ExtraMissing if torch or transformers is not installed; commands call it before they begin anything."""
    _need(distribution, extra, "torch", "transformers")


def need_align() -> None:
    """Raises ExtraMissing if a package is not installed that scoring with the predictor needs."""
    need_torch("research", "align")


def need_experiment() -> None:
    """Raises ExtraMissing if a package is not installed that experiments need: torch, or the coordinator's round machine."""
    need_torch("research", "experiment")
    _need("research", "experiment", "pluralllm.server")


def need_report() -> None:
    """Raises ExtraMissing if a package is not installed that reports need. They draw figures and need no torch."""
    _need("research", "experiment", "matplotlib", "jinja2")


def _need(distribution: str, extra: str, *packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ExtraMissing(package=package, extra=extra, part=distribution)
