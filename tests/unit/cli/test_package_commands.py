"""Commands of other packages are found by entry points and loaded when they are typed; a broken one disturbs no other."""

import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint, PathDistribution
from pathlib import Path

import pytest
import typer
from support.command_tree import inner_commands
from support.installed_package import write_metadata
from typer.core import TyperGroup
from typer.main import get_group

from pluralllm.cli.__main__ import command_line
from pluralllm.cli.package_commands import RESEARCH_COMMANDS, PackageCommand, add_package_commands
from pluralllm.common.errors.tree import CommandBroken, CommandMissing

REPOSITORY = Path(__file__).parents[3]
WEATHER = """
import typer

app = typer.Typer()
number = 7


@app.command()
def rain() -> None:
    '''Reports the rain.'''
    typer.echo("rain")


@app.command()
def sun() -> None:
    '''Reports the sun.'''


def greet(name: str) -> None:
    '''Greets a person.'''
    typer.echo(f"good day, {name}")
"""


def package(folder: Path, name: str, **commands: str) -> list[EntryPoint]:
    """Returns the entry points of a package that is installed in `folder`; `__` in a command's name stands for a dot."""
    points = {word.replace("__", "."): value for word, value in commands.items()}
    return list(PathDistribution(write_metadata(folder, name, "1.0", {"pluralllm.commands": points})).entry_points)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with two modules: `weather` works, `fog` cannot be imported."""
    (tmp_path / "weather.py").write_text(WEATHER)
    (tmp_path / "fog.py").write_text("import a_package_that_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("weather", "fog"):
        sys.modules.pop(name, None)


@pytest.fixture
def commands() -> TyperGroup:
    """A command line with the command `status` and the group `model`, which has the command `pull`."""
    app, model = typer.Typer(), typer.Typer()

    @app.command()
    def status() -> None:
        typer.echo("the built-in status")

    @model.command()
    def pull() -> None:
        typer.echo("the built-in pull")

    app.add_typer(model, name="model")
    return get_group(app)


def type_(commands: TyperGroup, *arguments: str) -> None:
    commands.main(list(arguments), prog_name="pluralllm", standalone_mode=False)


def test_a_function_of_another_package_is_a_command(
    commands: TyperGroup, modules: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_package_commands(commands, package(modules, "weather-station", greet="weather:greet"))
    type_(commands, "greet", "Ann")
    assert capsys.readouterr().out == "good day, Ann\n"


def test_an_application_of_another_package_is_a_group_of_commands(
    commands: TyperGroup, modules: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_package_commands(commands, package(modules, "weather-station", weather="weather:app"))
    type_(commands, "weather", "rain")
    assert capsys.readouterr().out == "rain\n"


def test_a_name_with_a_dot_is_a_command_in_a_group(
    commands: TyperGroup, modules: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_package_commands(commands, package(modules, "weather-station", model__greet="weather:greet"))
    type_(commands, "model", "greet", "Ann")
    type_(commands, "model", "pull")
    assert capsys.readouterr().out == "good day, Ann\nthe built-in pull\n"


def test_a_name_in_a_group_that_does_not_exist_stays_whole(commands: TyperGroup, modules: Path) -> None:
    add_package_commands(commands, package(modules, "weather-station", sky__greet="weather:greet"))
    assert "sky.greet" in commands.commands


def test_help_shows_a_command_without_importing_it(
    commands: TyperGroup, modules: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_package_commands(commands, package(modules, "weather-station", greet="weather:greet", mist="fog:show"))
    type_(commands, "--help")
    assert capsys.readouterr().out.count("Command of the package weather-station.") == 2
    assert "weather" not in sys.modules


def test_a_broken_package_is_an_error_only_where_it_is_typed(
    commands: TyperGroup, modules: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_package_commands(commands, package(modules, "fog-horn", fog="fog:app", smoke="weather:nothing"))
    type_(commands, "status")
    assert capsys.readouterr().out == "the built-in status\n"
    with pytest.raises(
        CommandBroken, match=r"`pluralllm fog` comes with fog-horn and .* No module named 'a_package_that"
    ):
        type_(commands, "fog")
    with pytest.raises(CommandBroken, match="has no attribute 'nothing'"):
        type_(commands, "smoke", "--help")


def test_an_entry_point_that_is_no_command_is_broken(commands: TyperGroup, modules: Path) -> None:
    add_package_commands(commands, package(modules, "weather-station", seven="weather:number"))
    with pytest.raises(CommandBroken, match="weather-station"):
        type_(commands, "seven")


def test_a_command_of_two_packages_is_ambiguous(commands: TyperGroup, modules: Path) -> None:
    both = [
        *package(modules, "a-station", greet="weather:greet"),
        *package(modules, "b-station", greet="weather:greet"),
    ]
    add_package_commands(commands, both)
    with pytest.raises(CommandBroken, match=r"comes with a-station and b-station .* more than one package"):
        type_(commands, "greet", "Ann")


def test_no_package_replaces_a_built_in_command(
    commands: TyperGroup, modules: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_package_commands(
        commands, package(modules, "weather-station", status="weather:greet", model__pull="weather:greet")
    )
    type_(commands, "status")
    type_(commands, "model", "pull")
    assert capsys.readouterr().out == "the built-in status\nthe built-in pull\n"


@pytest.mark.parametrize(
    ("words", "requirement"),
    [
        ("experiment run x.toml", "pluralllm-research[experiment]"),
        ("report --help", "pluralllm-research"),
        ("score", "pluralllm-research[align]"),
        ("pairs", "pluralllm-research[align]"),
        ("model export first folder", "pluralllm-research"),
        ("model serve folder", "pluralllm-research[align]"),
    ],
)
def test_a_command_that_is_not_installed_names_what_to_install(
    commands: TyperGroup, words: str, requirement: str
) -> None:
    add_package_commands(commands, ())
    with pytest.raises(CommandMissing) as caught:
        type_(commands, *words.split())
    assert str(caught.value).startswith(
        f"`pluralllm {' '.join(words.split()[: 2 if 'model' in words else 1])}` comes with"
    )
    assert str(caught.value).endswith(f" pip install '{requirement}'")


def test_a_shell_that_completes_a_missing_command_gets_no_error(commands: TyperGroup) -> None:
    add_package_commands(commands, ())
    context = commands.commands["score"].make_context("score", ["mod"], resilient_parsing=True)
    assert isinstance(context.command, PackageCommand)


def test_help_of_a_research_command_starts_with_the_line_that_is_known_without_an_import() -> None:
    loaded = inner_commands(command_line())
    loaded |= {f"model.{word}": command for word, command in inner_commands(loaded["model"]).items()}
    first_lines = {name: (loaded[name].help or "").split("\n")[0] for name in (one.name for one in RESEARCH_COMMANDS)}
    assert first_lines == {command.name: command.summary for command in RESEARCH_COMMANDS}


def test_the_research_package_declares_the_commands_that_are_known_and_no_others() -> None:
    project = tomllib.loads((REPOSITORY / "research" / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pluralllm.commands"].keys() == {command.name for command in RESEARCH_COMMANDS}
    extras = {command.extra for command in RESEARCH_COMMANDS if command.extra}
    assert extras <= project["optional-dependencies"].keys()
