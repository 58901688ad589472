"""The output of commands: texts of another party as escapes, JSON whose values do not change, no markup in texts."""

import json
from pathlib import Path

import pytest
from rich.table import Table

from pluralllm.common.process.console import (
    Check,
    checked,
    json_text,
    print_checks,
    print_config,
    say,
    showing_progress,
    terminal,
)
from pluralllm.common.process.json_forms import CHECKS
from pluralllm.common.text.reading import Unreadable

HOSTILE = "\x1b[2J\u202e[red]x[/red] :smile:"
SHOWN = "\\x1b[2J\\u202e[red]x[/red] :smile:"


def test_a_line_is_printed_with_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"{HOSTILE}\nnext")
    say(HOSTILE, err=True)
    assert tuple(capsys.readouterr()) == (f"{SHOWN}\nnext\n", f"{SHOWN}\n")


def test_markup_in_a_text_has_no_effect_in_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_checks([Check(HOSTILE, ok=True, result="r")], as_json=False)
    print_config({"key": HOSTILE}, None, as_json=False)
    terminal().print("[red]plain[/red]")
    out = capsys.readouterr().out
    assert out.count(SHOWN) == 2
    assert "[red]plain[/red]" in out


def test_json_keeps_each_value_and_shows_no_control() -> None:
    value = {"name": HOSTILE, "日本": "\x7f"}
    text = json_text(value)
    assert json.loads(text) == value
    assert "日本" in text
    assert all(char.isprintable() or char == "\n" for char in text)


def test_checks_as_json_have_their_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert not print_checks([Check("n", ok=False, result=HOSTILE)], as_json=True)
    out = capsys.readouterr().out
    assert json.loads(out)["schema"] == CHECKS.schema
    assert "\x1b" not in out


def test_progress_is_silent_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with showing_progress("a") as report:
        report("b", 1, 2)
    assert tuple(capsys.readouterr()) == ("", "")


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "/x"), Unreadable(Path("/x"), "it is in UTF-16")]
)
def test_a_file_that_cannot_be_read_fails_one_check_of_a_doctor(error: Exception) -> None:
    def probe() -> Check:
        raise error

    check = checked("disk", probe)
    assert (check.name, check.ok, "/x" in check.result, bool(check.fix)) == ("disk", False, True, True)


def test_a_check_without_memory_fails_alone() -> None:
    def probe() -> Check:
        raise MemoryError

    check = checked("data", probe)
    assert (check.ok, check.result) == (False, "not enough memory")
    assert check.fix


def test_an_error_that_is_about_no_file_is_not_taken_for_a_check() -> None:
    def probe() -> Check:
        raise FileNotFoundError(2, "No such file or directory")  # as for a working directory that was deleted

    with pytest.raises(FileNotFoundError):
        checked("disk", probe)


def test_a_table_in_a_pipe_is_not_cut_to_the_width_of_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("name", "group", "fingerprint", box=None)
    table.add_row("org-a", "G" * 60, "f" * 95)
    terminal().print(table)
    assert any({"org-a", "G" * 60, "f" * 95} <= set(line.split()) for line in capsys.readouterr().out.splitlines())
