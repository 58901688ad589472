"""The tables of the command lines agree with the commands, and every command has -h."""

import importlib
from types import ModuleType

import pytest
from support.command_tree import inner_commands
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from pluralllm.cli import __main__ as operators
from pluralllm.client import __main__ as clients
from pluralllm.common import __version__
from pluralllm.common.process.later_commands import Later
from pluralllm.server import __main__ as coordinators

LINES = {"pluralllm": operators, "pluralllm-client": clients, "pluralllm-server": coordinators}
ROWS = [(name, row) for name, line in LINES.items() for row in line.COMMANDS]


@pytest.mark.parametrize(("line", "row"), ROWS, ids=[f"{name} {row.name}" for name, row in ROWS])
def test_the_line_of_help_in_a_table_is_the_first_line_of_the_commands_docstring(line: str, row: Later) -> None:
    command = inner_commands(get_command(LINES[line].app))[row.name]
    assert (command.help or "").split("\n")[0] == row.summary


@pytest.mark.parametrize(("name", "line"), LINES.items())
def test_a_command_line_shows_its_version(name: str, line: ModuleType) -> None:
    shown = CliRunner().invoke(line.app, ["--version"])
    assert (shown.exit_code, shown.stdout) == (0, f"{name} {__version__}\n")


@pytest.mark.parametrize(("name", "line"), LINES.items())
@pytest.mark.parametrize("asked", ["-h", "--help"])
def test_help_lists_every_command_with_its_whole_line(name: str, line: ModuleType, asked: str) -> None:
    shown = CliRunner().invoke(line.app, [asked], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    words = " ".join(shown.stdout.split())
    assert [row.name for row in line.COMMANDS if (f"{row.name} {row.summary}" in words) == row.hidden] == []
    assert f"Usage: {name}" in shown.stdout


@pytest.mark.parametrize(
    ("line", "words"),
    [("pluralllm", ["run", "create"]), ("pluralllm-client", ["data", "import"]), ("pluralllm-server", ["serve"])],
)
def test_an_inner_command_has_the_short_form_of_help_and_plain_text(line: str, words: list[str]) -> None:
    shown = CliRunner().invoke(LINES[line].app, [*words, "-h"])
    assert shown.exit_code == 0
    assert f"Usage: {line} {' '.join(words)}" in shown.stdout
    assert "-h, --help" in shown.stdout
    assert "│" not in shown.stdout


def test_the_help_of_a_group_cuts_no_line() -> None:
    shown = CliRunner().invoke(operators.app, ["run", "-h"])
    create = importlib.import_module("pluralllm.cli.run_commands").create
    assert (create.__doc__ or "").split("\n")[0] in " ".join(shown.stdout.split())


def test_a_command_of_another_package_stands_in_its_group_and_not_beside_it() -> None:
    whole = operators.command_line()
    assert "model.export" not in whole.commands
    assert {"export", "serve", "pull"} <= inner_commands(inner_commands(whole)["model"]).keys()


@pytest.mark.parametrize(("line", "row"), ROWS, ids=[f"{name} {row.name}" for name, row in ROWS])
def test_a_row_says_whether_commands_follow_it(line: str, row: Later) -> None:
    assert isinstance(inner_commands(get_command(LINES[line].app))[row.name], TyperGroup) == row.is_group
