"""The Python interface is light to import, and stays part of one namespace package."""

import subprocess
import sys

import pytest

import pluralllm
import pluralllm.api

HEAVY = ("torch", "transformers", "grpc", "numpy", "pandas", "scipy", "tqdm", "sqlalchemy", "trl")
LIGHT = f"""
import sys, pluralllm.api
loaded = [name for name in {HEAVY} if name in sys.modules]
sys.exit(f"loaded for nothing: {{loaded}}" if loaded else 0)
"""


def test_importing_the_interface_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there_and_documented() -> None:
    assert {"Federation", "RunSpec", "PreferencePredictor", "GroupReward", "Experiment"} <= set(dir(pluralllm.api))
    for name in pluralllm.api.__all__:
        assert getattr(pluralllm.api, name).__doc__, name


@pytest.mark.parametrize("name", ["Federations", "simulation_of"])
def test_a_name_that_is_not_public_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=f"no attribute '{name}'"):
        getattr(pluralllm.api, name)


def test_the_namespace_package_stays_one() -> None:
    assert pluralllm.__file__ is None
