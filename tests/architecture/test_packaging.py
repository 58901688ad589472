"""What is installed where, and what starts quickly."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
HEAVY = ("torch", "transformers")
# Libraries that take a tenth of a second or more to load: no text of help needs them.
SLOW_TO_LOAD = (
    *(
        "torch",
        "transformers",
        "numpy",
        "scipy",
        "pandas",
        "pyarrow",
        "safetensors",
        "matplotlib",
        "jinja2",
        "datasets",
        "trl",
    ),
    *(
        "grpc",
        "google.protobuf",
        "opentelemetry",
        "sqlalchemy",
        "alembic",
        "psycopg",
        "obstore",
        "starlette",
        "uvicorn",
    ),
)
CLIENT_LATER = "its doctor and its data commands still load gRPC, numpy and pyarrow"


def dependencies(part: str) -> list[str]:
    project = tomllib.loads((REPOSITORY / part / "pyproject.toml").read_text())["project"]
    found: list[str] = project["dependencies"]
    return found


def test_the_coordinator_needs_no_torch() -> None:
    for part in ("server", "common"):
        assert not [name for name in dependencies(part) if name.startswith(HEAVY)]


def test_the_clients_light_install_needs_no_torch() -> None:
    assert not [name for name in dependencies("client") if name.startswith(HEAVY)]


@pytest.mark.parametrize("module", ["pluralllm.cli.__main__", "pluralllm.server.__main__", "pluralllm.client.__main__"])
def test_a_command_starts_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


HELP = """
import runpy, sys
sys.argv = ["command", "--help"]
try:
    runpy.run_module(MODULE, run_name="__main__")
except SystemExit as end:
    if end.code:
        raise
loaded = [name for name in SLOW_TO_LOAD if name in sys.modules]
sys.exit(f"loaded for nothing: {', '.join(loaded)}" if loaded else 0)
"""


@pytest.mark.parametrize(
    "module",
    [
        "pluralllm.cli",
        "pluralllm.server",
        pytest.param("pluralllm.client", marks=pytest.mark.xfail(reason=CLIENT_LATER)),
    ],
)
def test_help_loads_no_library_that_takes_its_time(module: str) -> None:
    code = HELP.replace("MODULE", repr(module)).replace("SLOW_TO_LOAD", repr(SLOW_TO_LOAD))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["pluralllm.cli", "pluralllm.server", "pluralllm.client"])
def test_help_names_the_exit_codes(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert "Exit codes" in done.stdout


def test_every_pinned_version_is_exact_and_from_nowhere_in_particular() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins
    assert [line for line in pins if line.count("==") != 1 or "+" in line or "/" in line or "@" in line] == []


LIGHT = """
import importlib.util, runpy, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else real(name, *rest)
sys.argv = ["command", *sys.argv[2:]]
runpy.run_module(MODULE, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("pluralllm.client", ["run"]),
        ("pluralllm.client", ["data", "embed", "none.jsonl", "--spec", "none.toml", "--cache", "none"]),
    ],
)
def test_a_light_install_says_what_to_install(module: str, arguments: list[str]) -> None:
    code = LIGHT.replace("MODULE", repr(module))
    environment = {"PLURALLLM_CLIENT_CLIENT_ID": "a", "PLURALLLM_CLIENT_GROUP": "g", "PLURALLLM_CLIENT_DATA": "none"}
    done = subprocess.run(
        [sys.executable, "-c", code, "command", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: This needs torch, which is not installed. pip install")
