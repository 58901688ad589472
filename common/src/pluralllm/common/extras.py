"""What a light install leaves out."""

import importlib.util

from pluralllm.common.errors import ExtraMissing


def need_torch() -> None:
    """Raises ExtraMissing before anything is begun that needs the extra [train]."""
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise ExtraMissing(package=package)
