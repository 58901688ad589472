"""What a light install leaves out."""

import importlib.util

from pluralllm.common.errors.tree import ExtraMissing


def need_torch(extra: str = "train") -> None:
    """Raises ExtraMissing before anything is begun that needs the extra."""
    _need(extra, "torch", "transformers")


def need_experiment() -> None:
    """The same for experiments, which use the coordinator's round machine and aggregation."""
    need_torch("experiment")
    _need("experiment", "pluralllm.server")


def need_report() -> None:
    """The same for reports, which draw figures and need no torch."""
    _need("experiment", "matplotlib", "jinja2")


def _need(extra: str, *packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ExtraMissing(package=package, extra=extra)
