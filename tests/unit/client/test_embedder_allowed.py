"""The code of another package's embedder makes no vectors for a run spec's file before the partner has allowed the package."""

import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from support.installed_package import METHODS, RUN_OF_VECTORS, Site

from pluralllm.client.data.private_data import write_group
from pluralllm.client.data_commands import check, embed
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.words.questions import Question


@pytest.fixture
def files(site: Site, tmp_path: Path) -> dict[str, Any]:
    """The arguments of a command, for a run spec with a plug-in whose package is installed."""
    site.install("town_hall_methods")
    write_group(tmp_path / "answers.jsonl", [Question("Tea?", ("Yes", "No"), (0.5, 0.5))])
    (tmp_path / "run.toml").write_text(RUN_OF_VECTORS)
    cache = tmp_path / "state" / "cache"
    return {"file": tmp_path / "answers.jsonl", "spec": tmp_path / "run.toml", "device": "cpu", "cache": cache}


def allow(files: dict[str, Any], package: str) -> None:
    files["cache"].parent.mkdir(exist_ok=True)
    (files["cache"].parent / "policy.toml").write_text(f'allowed_embedders = ["{package}"]\n')


def checked(**files: Any) -> None:
    with pytest.raises(typer.Exit):  # one question is too few for an episode
        check(**files, epsilon=None, delta=1e-6, questions_per_respondent=0, as_json=True)


@pytest.mark.parametrize("command", [embed, checked])
def test_a_run_specs_package_makes_vectors_only_if_the_policy_or_the_command_allows_it(
    files: dict[str, Any], command: Any
) -> None:
    def refuses(**options: str) -> None:
        with pytest.raises(InvalidArgument, match=r"--allow-embedder: must name town-hall-methods==1\.0, whose code"):
            command(**files, **options)

    refuses()
    refuses(allow_embedder=f"{METHODS}==1.1")
    allow(files, f"{METHODS}==1.1")
    refuses()
    assert "town_hall_vectors" not in sys.modules, "none of its code ran"
    command(**files, allow_embedder=METHODS)
    allow(files, f"{METHODS}==1.0")
    command(**files)
    assert "town_hall_vectors" in sys.modules


def test_without_vectors_a_run_spec_with_a_package_is_checked_as_every_other_one(files: dict[str, Any]) -> None:
    checked(**{**files, "cache": None})
    assert "town_hall_vectors" not in sys.modules
