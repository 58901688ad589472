"""The contents and dependencies of each distribution, and the commands that start quickly."""

import email
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from support.built_wheels import build_wheels

pytestmark = pytest.mark.seconds

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
        "pluralllm.experiment",
        "pluralllm.align",
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
        "rich",
        "pydantic",
        "cryptography",
        "structlog",
        "asyncio",
    ),
)
NOT_FOR_PARTNERS = {"matplotlib", "jinja2", "trl", "pluralllm-server", "pluralllm-research"}


def project(part: str) -> dict[str, Any]:
    """The table [project] of a distribution's pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((REPOSITORY / part / "pyproject.toml").read_text())["project"]
    return table


def dependencies(part: str) -> list[str]:
    """The dependencies of a distribution, those of its extras left out."""
    lines: list[str] = project(part)["dependencies"]
    return lines


def names_of(requirements: Iterable[str]) -> set[str]:
    """The names of the required distributions, without extras, versions and markers."""
    matches = (re.match(r"[\w.-]+", requirement) for requirement in requirements)
    return {match[0].lower() for match in matches if match is not None}


def everything_needed(requirements: Iterable[str]) -> set[str]:
    """The names of these requirements and of all that our own distributions among them require, in any extra."""
    names = names_of(requirements)
    for name in [name for name in names if name.startswith("pluralllm-")]:
        part = name.removeprefix("pluralllm-")
        extras = project(part).get("optional-dependencies", {})
        names |= everything_needed([*dependencies(part), *(line for lines in extras.values() for line in lines)])
    return names


def test_the_coordinator_needs_no_torch() -> None:
    for part in ("server", "common"):
        assert not [name for name in dependencies(part) if name.startswith(HEAVY)]


def test_the_clients_light_install_needs_no_torch() -> None:
    assert not [name for name in dependencies("client") if name.startswith(HEAVY)]


@pytest.fixture(scope="module")
def client_wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel that a partner installs, built here."""
    (path,) = build_wheels(REPOSITORY, tmp_path_factory.mktemp("wheel"), ("client",)).iterdir()
    return zipfile.ZipFile(path)


def test_a_partner_installs_the_daemon_and_the_command_and_nothing_for_researchers(
    client_wheel: zipfile.ZipFile,
) -> None:
    modules = [Path(name) for name in client_wheel.namelist() if ".dist-info/" not in name]
    assert {path.parts[:2] for path in modules} == {("pluralllm", room) for room in ("client", "cli", "operator")}
    assert Path("pluralllm/client/policy_default.toml") in modules


def test_a_partners_wheel_depends_on_nothing_for_researchers_in_any_extra(client_wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in client_wheel.namelist() if name.endswith(".dist-info/METADATA")]
    requirements = email.message_from_bytes(client_wheel.read(name)).get_all("Requires-Dist", [])
    assert "pluralllm-common" in names_of(requirements)
    assert everything_needed(requirements) & NOT_FOR_PARTNERS == set()


def test_rewards_need_no_coordinator_and_experiments_do() -> None:
    extras = project("research")["optional-dependencies"]
    assert "pluralllm-server" not in everything_needed([*dependencies("research"), *extras["align"]])
    assert "pluralllm-server" in names_of(extras["experiment"])


WITHOUT_RESEARCH = """
import importlib.metadata, runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("matplotlib", "torch", "trl") or name.startswith(("pluralllm.experiment", "pluralllm.align")):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
importlib.metadata.entry_points = lambda **_: importlib.metadata.EntryPoints(())
sys.argv = ["pluralllm", *sys.argv[1:]]
runpy.run_module("pluralllm.cli", run_name="__main__")
"""


def type_without_research(*words: str) -> "subprocess.CompletedProcess[str]":
    """Types `pluralllm` in a process that finds neither the research distribution nor what only it needs."""
    command = [sys.executable, "-c", WITHOUT_RESEARCH, *words]
    environment = {**os.environ, "COLUMNS": "160"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


def test_a_command_for_researchers_says_what_it_needs_where_only_the_client_is_installed() -> None:
    done = type_without_research("experiment", "run", "paper.toml")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        "error: `pluralllm experiment` comes with pluralllm-research (experiments, reports and rewards; partners and operators "
        "do without it), which is not installed. pip install 'pluralllm-research[experiment]' [COMMAND_MISSING]\n"
    )


def test_help_lists_the_commands_for_researchers_where_only_the_client_is_installed() -> None:
    done = type_without_research("--help")
    assert done.returncode == 0, done.stderr
    entries = re.findall(r"^  (\w+) +(.+(?:\n    .+)*)", done.stdout.partition("Commands:")[2], re.MULTILINE)
    needs = "Needs pluralllm-research, which is not installed."
    missing = [name for name, text in entries if " ".join(text.split()).replace("- ", "-").endswith(needs)]
    assert missing == ["report", "score", "pairs", "experiment"]


@pytest.mark.parametrize("module", ["pluralllm.cli.__main__", "pluralllm.server.__main__", "pluralllm.client.__main__"])
def test_a_command_starts_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


HELP = """
import runpy, sys
sys.argv = ["command", ASKED]
try:
    runpy.run_module(MODULE, run_name="__main__")
except SystemExit as end:
    if end.code:
        raise
loaded = [name for name in SLOW_TO_LOAD if name in sys.modules]
print("loaded for nothing:", ", ".join(loaded) or "none")  # the command has set the exit code of this process
"""


@pytest.mark.parametrize(
    "module",
    [
        "pluralllm.cli",
        "pluralllm.server",
        "pluralllm.client",
    ],
)
@pytest.mark.parametrize("asked", ["--help", "--version"])
def test_help_and_version_load_no_library_that_takes_its_time(module: str, asked: str) -> None:
    code = HELP.replace("MODULE", repr(module)).replace("ASKED", repr(asked))
    code = code.replace("SLOW_TO_LOAD", repr(SLOW_TO_LOAD))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.endswith("\nloaded for nothing: none\n"), done.stdout + done.stderr


LOG, TABLES, MODELS = ("structlog",), ("rich",), ("pydantic", "typer._adapters")
KEYS, CALLS, NUMBERS = ("cryptography",), ("grpc", "google"), ("numpy", "torch", "pyarrow")
OTHERS = ("sqlalchemy", "stamina", "prometheus_client", "opentelemetry")
ALL = (*LOG, *TABLES, *MODELS, *KEYS, *CALLS, *NUMBERS, *OTHERS, "importlib.metadata")
TYPED = """
import contextlib, runpy, sys
for command in COMMANDS:
    sys.argv = ["command", *command.split()[1:]]
    with contextlib.suppress(SystemExit):
        runpy.run_module(command.split()[0], run_name="__main__")
sys.stdout.write("loaded for nothing: " + (", ".join(name for name in UNUSED if name in sys.modules) or "none"))
sys.stdout.flush()
"""


@pytest.mark.parametrize(
    ("commands", "unused"),
    [
        (["pluralllm.cli status --help", "pluralllm.cli invite --help", "pluralllm.cli join --help"], ALL),
        (["pluralllm.client join --help", "pluralllm.client run --help", "pluralllm.client peers --help"], ALL),
        # without an identity and without a state, so that no coordinator is needed
        (["pluralllm.client status --state-dir none"], (*LOG, *TABLES, *KEYS, *CALLS, *NUMBERS, *OTHERS)),
        (["pluralllm.client healthy --state-dir none"], (*LOG, *TABLES, *KEYS, *CALLS, *NUMBERS, *OTHERS)),
        (["pluralllm.client peers pin --state-dir none --roster x --names y"], (*CALLS, "numpy", *OTHERS)),
        (["pluralllm.client join no-such-invite"], (*LOG, *TABLES, *NUMBERS[:2], *OTHERS)),
        (["pluralllm.server init --host localhost --help"], (*LOG, *TABLES, *CALLS, *NUMBERS, *OTHERS)),
    ],
)
def test_a_command_loads_no_library_that_it_does_not_use(
    commands: list[str], unused: tuple[str, ...], tmp_path: Path
) -> None:
    code = TYPED.replace("COMMANDS", repr(commands)).replace("UNUSED", repr(unused))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.endswith("loaded for nothing: none"), done.stdout + done.stderr


STATUS = """
import sys
from typer.main import get_command
import pluralllm.cli.connection as connection
from pluralllm.cli.__main__ import app
from pluralllm.common.errors.tree import NotFound

class Remote:
    def get_run(self, run):
        raise NotFound(what="the run", name=run)

def remote(coordinator):
    import pluralllm.operator.opening, pluralllm.operator.remote, pluralllm.cli.status_screen
    return Remote()

connection.remote = remote
try:
    get_command(app)(["--identity", "x", "status", "first", "--coordinator", "localhost:1"], standalone_mode=False)
except NotFound:
    pass
slow = ("torch", "numpy", "pyarrow", "structlog", "rich.live", "rich.markdown", "importlib.metadata", "pydantic",
        "typer._adapters", "google.protobuf.json_format", "pluralllm.client.joining.diagnosis", "grpc_status")
sys.exit(", ".join(name for name in slow if name in sys.modules) or 0)
"""


def test_status_loads_no_library_that_it_does_not_use() -> None:
    done = subprocess.run([sys.executable, "-c", STATUS], capture_output=True, text=True, timeout=60, check=False)
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
