"""The importer of another package, installed as its pyproject.toml says."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import typer
from support.installed_package import Site
from typer.testing import CliRunner

from pluralllm.client.data.codebook import codebook_beside
from pluralllm.client.data.private_data import read_counted
from pluralllm.client.data_commands import app
from pluralllm.client.plugin_command import imported, options_of
from pluralllm.common.errors.tree import CommandBroken, InvalidArgument, InvalidData
from pluralllm.common.process.plugins import IMPORTERS, one_named


@pytest.fixture
def installed(site: Site) -> None:
    site.install("town_hall_importer")


def types(*words: str | Path) -> None:
    command: typer.Typer = app
    CliRunner().invoke(command, ["import", "plugin", *map(str, words)], catch_exceptions=False)


@pytest.mark.usefixtures("installed")
def test_an_importer_of_another_package_makes_a_private_file_with_counts_and_its_list_of_questions(
    tmp_path: Path,
) -> None:
    (tmp_path / "polls.txt").write_text("A new bridge?;30;10\nA new school?;0;0\n")
    types("town-hall", tmp_path / "polls.txt", "--out", tmp_path / "town.jsonl", "--option", "yes=Yes!")
    bridge, school = read_counted(tmp_path / "town.jsonl")
    assert (bridge.options, bridge.counts, bridge.respondents) == (("Yes!", "no"), (30.0, 10.0), 40)
    assert school.respondents == 0
    assert codebook_beside(tmp_path / "town.jsonl").exists(), "noise needs the list of what was asked"


@pytest.mark.usefixtures("installed")
def test_the_importers_own_refusal_names_the_line_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "polls.txt").write_text("A new bridge?;many;10\n")
    with pytest.raises(InvalidData, match="line 1: must be QUESTION;YES;NO"):
        types("town-hall", tmp_path / "polls.txt", "--out", tmp_path / "town.jsonl")
    assert not (tmp_path / "town.jsonl").exists()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("town", "x"), "no installed package has it; there are: town-hall"),
        (("town-hall", "x", "--option", "yes"), "must be KEY=VALUE"),
        (("town-hall", "x", "--option", "a=1", "--option", "a=2"), "each key once"),
    ],
)
def test_what_is_typed_wrong_is_refused(words: tuple[str, ...], problem: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        types(*words, "--out", tmp_path / "town.jsonl")


def point(value: str) -> EntryPoint:
    return EntryPoint("broken", value, "pluralllm.importers")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("a_package_that_nobody_has:f", "ModuleNotFoundError"),
        ("json:loads", "TypeError"),
        ("os:fspath", "it returned str, not Question"),
    ],
)
def test_a_broken_importer_is_named_with_its_package(value: str, problem: str) -> None:
    with pytest.raises(CommandBroken, match=problem):
        imported(point(value), Path("source"), {})


def test_an_importer_that_two_packages_have_is_not_chosen_by_chance() -> None:
    with pytest.raises(InvalidArgument, match="more than one package"):
        one_named("broken", IMPORTERS, [point("a:f"), point("b:f")])
    assert options_of(["a=b=c"]) == {"a": "b=c"}
