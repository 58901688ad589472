"""The wheels of a release in environments of their own, as a user installs them: `make packages`."""

import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.built_wheels import ROOT

from pluralllm.common import __version__

ASKED = os.environ.get("PLURALLLM_PACKAGES", "")
pytestmark = [
    pytest.mark.skipif(not ASKED, reason="it installs packages from a registry: make packages"),
    pytest.mark.timeout(900),
]
START_LIMIT_S = 0.150
BUSY = 2.0  # a busy machine takes longer for everything: then the limit is this many times the import of typer alone
TIMES = 7


def run(words: Sequence[str | Path], folder: Path) -> "subprocess.CompletedProcess[str]":
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PLURALLLM_"))}
    return subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env=kept,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def installed(folder: Path, *requirements: str) -> Path:
    """Installs requirements into a new environment, ours from the wheels; returns the folder of its commands."""
    folder.mkdir()
    run([sys.executable, "-m", "venv", folder / "venv"], folder).check_returncode()
    pip: list[str | Path] = [
        folder / "venv" / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    pinned: list[str | Path] = [*pip, "--constraint", ROOT / "constraints.txt", "--find-links", ASKED, *requirements]
    done = run(pinned, folder)
    assert done.returncode == 0, done.stderr
    return folder / "venv" / "bin"


def cpu_s(words: Sequence[str | Path], folder: Path) -> float:
    """Returns the least CPU time of a command over some tries, user and system together, in seconds."""
    least = float("inf")
    for _ in range(TIMES):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run(words, folder).check_returncode()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        least = min(least, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return least


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("light") / "client", f"pluralllm-client=={__version__}")


def test_a_light_install_of_the_client_has_both_commands_and_no_torch(light: Path, tmp_path: Path) -> None:
    packages = run([light / "python", "-m", "pip", "list", "--format", "freeze"], tmp_path).stdout.lower()
    assert f"pluralllm-client=={__version__}" in packages
    assert [name for name in ("torch", "transformers", "pluralllm-server") if f"{name}==" in packages] == []
    for command in ("pluralllm", "pluralllm-client"):
        assert run([light / command, "--version"], tmp_path).stdout == f"{command} {__version__}\n"


@pytest.mark.parametrize("command", ["pluralllm", "pluralllm-client"])
@pytest.mark.parametrize("asked", ["--help", "--version"])
def test_a_light_command_starts_at_once(light: Path, tmp_path: Path, command: str, asked: str) -> None:
    typer_s = cpu_s([light / "python", "-c", "import typer"], tmp_path)
    taken_s = cpu_s([light / command, asked], tmp_path)
    print(f"{command} {asked}: {1000 * taken_s:.0f} ms; import typer: {1000 * typer_s:.0f} ms")
    assert taken_s < max(START_LIMIT_S, BUSY * typer_s)


def test_a_light_install_names_the_package_of_each_absent_command(light: Path, tmp_path: Path) -> None:
    for words in (["experiment", "run", "x.toml"], ["report"], ["score"], ["pairs"], ["model", "serve"]):
        done = run([light / "pluralllm", *words], tmp_path)
        assert (done.returncode, "pip install 'pluralllm-research" in done.stderr) == (3, True), done.stderr


def test_a_light_install_checks_a_spec(light: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(run([light / "pluralllm", "spec", "new"], tmp_path).stdout)
    assert "sha256" in run([light / "pluralllm", "spec", "check", "run.toml", "--json"], tmp_path).stdout


def test_the_server_installs_by_itself_and_makes_a_federation(tmp_path: Path) -> None:
    commands = installed(tmp_path / "server", f"pluralllm-server=={__version__}")
    assert not (commands / "pluralllm").exists()
    done = run([commands / "pluralllm-server", "init", "--host", "127.0.0.1", "--admin-identity", "admin"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "admin").is_dir()
