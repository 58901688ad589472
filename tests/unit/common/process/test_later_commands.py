"""Typed values arrive as Typer would convert them, and commands of other packages are looked for only if one may be meant."""

import os
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from pluralllm.common.process.later_commands import Later, application, command_of

received: list[Any] = []
app = typer.Typer()


@app.command()
def inner() -> None:
    """Is a command of a group."""


def command(
    word: str = "-",
    path: Path | None = None,
    folder: Annotated[Path | None, typer.Option(file_okay=False)] = None,
    present: Annotated[Path | None, typer.Option(exists=True)] = None,
    number: Annotated[int, typer.Option(min=1)] = 7,
    words: Annotated[list[str] | None, typer.Option()] = None,
    upper: Annotated[str, typer.Option(parser=str.upper)] = "x",
) -> None:
    """Takes values of many kinds."""
    received[:] = [word, path, folder, present, number, words, upper]


def typed(*arguments: str) -> Any:
    """Returns the values that the command gets, or the text of the error."""
    received.clear()
    done = CliRunner().invoke(_Application, list(arguments))
    return list(received) if done.exit_code == 0 else done.output


_Application = typer.Typer(add_completion=False)
_Application.command()(command)


def test_values_arrive_as_typer_converts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    ours = command_of("command", command)
    for arguments in (
        [],
        ["--word", "", "--path", "a/../b", "--number", "3"],
        ["--path", "file", "--folder", ".", "--present", "file", "--words", "a", "--words", "b", "--upper", "y"],
    ):
        expected = typed(*arguments)
        received.clear()
        ours.main(arguments, standalone_mode=False)
        assert received == expected, arguments
    for arguments, text in (
        (["--folder", "file"], "is a file"),
        (["--present", "nobody"], "does not exist"),
        (["--number", "0"], "greater than or equal to 1"),
    ):
        assert text in typed(*arguments)
        with pytest.raises(Exception, match=text):
            ours.main(arguments, standalone_mode=False)


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(Exception, match="not readable"):
        command_of("command", command).main(["--path", str(tmp_path / "file")], standalone_mode=False)


@pytest.mark.parametrize(
    ("arguments", "searches"),
    [(["one"], 0), (["--help"], 1), (["other"], 1), (["group", "inner"], 1), (["nobody"], 1)],
)
def test_commands_of_other_packages_are_looked_for_if_one_may_be_meant(arguments: list[str], searches: int) -> None:
    searched = []

    def add_others(group: TyperGroup) -> None:
        searched.append(group)
        group.commands["other"] = command_of("other", command)

    rows = (
        Later("one", "Takes values.", f"{__name__}:command"),
        Later("group", "A group.", f"{__name__}:app", is_group=True),
    )
    done = CliRunner().invoke(application("made", "1", "A command line.", rows, others=add_others), arguments)
    assert (done.exit_code == 0) == (arguments != ["nobody"]), done.output
    assert len(searched) == searches
