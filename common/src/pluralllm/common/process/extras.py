"""Checks that optional packages are installed before a command that needs them begins."""

import importlib.util

from pluralllm.common.errors.tree import ExtraMissing


def need_torch(distribution: str = "client", extra: str = "train") -> None:
    """Checks that torch and transformers are installed. Raises ExtraMissing if one of the two packages is missing.

    distribution, extra: the package and its extra in the `pip install` line that the error suggests. Commands call this check
    before any work.
    """
    _need(distribution, extra, "torch", "transformers")


def need_noise() -> None:
    """Checks that OpenDP is installed, which draws the noise on answers. Raises ExtraMissing if it is missing."""
    _need("client", "noise", "opendp")


def need_surveys() -> None:
    """Checks that pyreadstat is installed, which reads files of SPSS and Stata. Raises ExtraMissing if it is missing."""
    _need("client", "surveys", "pyreadstat")


def need_align() -> None:
    """Checks that the packages for scoring with the predictor are installed: torch and transformers.

    Raises ExtraMissing if one of the two packages is missing; the error suggests the extra `align`.
    """
    need_torch("research", "align")


def need_serve() -> None:
    """Checks that starlette and uvicorn are installed, which serve rewards by HTTP. Raises ExtraMissing if one is missing."""
    _need("research", "serve", "starlette", "uvicorn")


def need_experiment() -> None:
    """Checks that the packages for experiments are installed: torch, transformers and pluralllm-server.

    Raises ExtraMissing if a package is missing. Experiments need the server package because experiments run its round machine.
    """
    need_torch("research", "experiment")
    _need("research", "experiment", "pluralllm.server")


def need_ray() -> None:
    """Checks that Ray is installed, which plays experiments on a cluster. Raises ExtraMissing if it is missing."""
    _need("research", "ray", "ray")


def need_report() -> None:
    """Checks that the packages for reports are installed: matplotlib and jinja2. Raises ExtraMissing if a package is missing."""
    _need("research", "experiment", "matplotlib", "jinja2")


def need_frames() -> None:
    """Checks that pandas is installed, which holds results as data frames. Raises ExtraMissing if it is missing."""
    _need("research", "frames", "pandas")


def _need(distribution: str, extra: str, *packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ExtraMissing(package=package, extra=extra, part=distribution)
