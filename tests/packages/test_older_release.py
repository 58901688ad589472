"""A coordinator and clients of two releases train the same model: `make compatibility`."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from release import PARTS
from support.built_wheels import ROOT, build_wheels, commit_before, sources_of, unpacked
from support.process_harness import Federation, federation, free_port, process_spec, tiny_embedding_model, until

from pluralllm.client.data.sample_survey import sample_groups

ASKED = os.environ.get("PLURALLLM_COMPATIBILITY") == "1"
BEFORE = commit_before() if ASKED else None
pytestmark = [
    pytest.mark.skipif(not ASKED, reason="two releases are built: make compatibility"),
    pytest.mark.skipif(ASKED and BEFORE is None, reason="this clone has no commit of release 0.2.0"),
    pytest.mark.timeout(600),
]
SPEC = process_spec(rounds=2)


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of the unpacked wheels of each release."""
    assert BEFORE is not None
    folder = tmp_path_factory.mktemp("releases")
    sources = {"new": ROOT, "old": sources_of(BEFORE, folder / "sources")}
    return {
        name: unpacked(build_wheels(where, folder / f"{name}-wheels", PARTS[:3]), folder / name)
        for name, where in sources.items()
    }


@pytest.fixture(scope="module")
def embedding_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_embedding_model(tmp_path_factory.mktemp("model"))


def place_of(release: Path, module: str) -> str:
    """Returns the file from which a process of a release imports a module."""
    code = f"import importlib.util; print(importlib.util.find_spec('{module}').origin)"
    words = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(release)}
    return subprocess.run(
        words, env=environment, cwd=release, capture_output=True, text=True, timeout=60, check=True
    ).stdout.strip()


def start_anew(running: Federation, of_coordinator: Mapping[str, str]) -> None:
    """Lets the coordinator's own release make its state: an older one refuses a newer one's database."""
    for folder in (running.state, running.admin):
        shutil.rmtree(folder)
    words = [sys.executable, "-m", "pluralllm.server", "init", "--host", "127.0.0.1"]
    words += ["--admin-identity", str(running.admin)]
    subprocess.run(words, env={**os.environ, **of_coordinator}, capture_output=True, timeout=60, check=True)


def digest_of(folder: Path, embedding_model: Path, coordinator: Path, clients: Path) -> str:
    """Runs a federation whose two sides are of these releases; returns the digest of its last model version."""
    with federation(folder, embedding_model, free_port()) as running, pytest.MonkeyPatch.context() as patch:
        of_coordinator = {**running.coordinator.environment, "PYTHONPATH": str(coordinator)}
        running.coordinator.environment = of_coordinator
        start_anew(running, of_coordinator)
        remote = running.start_coordinator()
        patch.setenv("PYTHONPATH", str(clients))
        for name, questions in zip(("ann", "ben"), sample_groups(2, 60, 0).values(), strict=True):
            running.start_client(name, questions)
        remote.create_run("r", SPEC.canonical_json())
        remote.start_run("r")
        until(lambda: remote.get_run("r")["phase"] == "ended", "the run ends", running, 200)
        run = remote.get_run("r")
        assert (run["outcome"], run["version"]) == ("completed", SPEC.rounds), run["outcome_reason"]
        remote.close()
        return str(run["version_digest"])


def test_each_release_runs_from_its_own_wheels(releases: dict[str, Path]) -> None:
    for module in ("pluralllm.common", "pluralllm.server.__main__", "pluralllm.client.__main__"):
        assert [place_of(folder, module).startswith(f"{folder}/") for folder in releases.values()] == [True, True]


@pytest.fixture(scope="module")
def digest_of_this_release(
    tmp_path_factory: pytest.TempPathFactory, releases: dict[str, Path], embedding_model: Path
) -> str:
    return digest_of(tmp_path_factory.mktemp("same"), embedding_model, releases["new"], releases["new"])


@pytest.mark.parametrize(("coordinator", "clients"), [("new", "old"), ("old", "new")])
def test_two_releases_train_the_model_of_one_to_the_bit(
    coordinator: str,
    clients: str,
    tmp_path: Path,
    releases: dict[str, Path],
    embedding_model: Path,
    digest_of_this_release: str,
) -> None:
    mixed = digest_of(tmp_path / "mixed", embedding_model, releases[coordinator], releases[clients])
    assert mixed == digest_of_this_release
