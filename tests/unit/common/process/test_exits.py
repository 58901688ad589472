"""The end of a command after an error of the operating system: one line that says what to do, and an exit code."""

import errno
import io
import os
import sys
import tempfile
from pathlib import Path

import pytest

from pluralllm.cli.explain_command import explain
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.process import lifetime
from pluralllm.common.process.exits import BROKEN, OF_THE_MACHINE, REFUSED, _run, run_command
from pluralllm.common.text.reading import Unreadable


def end_after(error: Exception, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """Returns the exit code of a command that raises an error, and what the command wrote to stderr."""

    def command() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        _run(command)
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize("number", OF_THE_MACHINE)
def test_an_error_of_the_machine_says_what_to_do(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = end_after(OSError(number, "It failed"), capsys)
    assert (code, text) == (REFUSED, f"error: It failed. {OF_THE_MACHINE[number]}\n")


def test_an_error_ends_with_the_code_that_explain_takes(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = end_after(InvalidArgument(field="--port", problem="is no number"), capsys)
    assert code == REFUSED
    assert text.endswith(" [INVALID_ARGUMENT]\n")
    explain(text.rpartition("[")[2].rstrip("]\n"))
    assert capsys.readouterr().out.startswith("INVALID_ARGUMENT\n")


def test_a_command_without_memory_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert end_after(MemoryError(), capsys) == (
        REFUSED,
        f"error: Not enough memory. {OF_THE_MACHINE[errno.ENOMEM]}\n",
    )


def test_without_a_folder_for_temporary_files_a_command_names_the_variable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(FileNotFoundError) as refused:
        tempfile.gettempdir()
    code, text = end_after(refused.value, capsys)
    assert code == REFUSED
    assert "No usable temporary directory" in text
    assert "Set TMPDIR to a folder" in text


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (OSError(errno.EBADF, "Bad file descriptor"), BROKEN, "error: unexpected OSError: [Errno 9]"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.toml"), REFUSED, "'a.toml'. Look at that path"),
        (Unreadable(Path("a.toml"), "it is a device"), REFUSED, "error: a.toml: it is a device\n"),
        (KeyError("x"), BROKEN, "error: unexpected KeyError"),
    ],
)
def test_other_errors_name_the_path_or_the_place_in_the_code(
    error: Exception, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, shown = end_after(error, capsys)
    assert (ended, text in shown, shown.count("\n")) == (code, True, 1)


@pytest.mark.parametrize(
    ("typed", "is_service", "is_terminal", "seen"),
    [
        ({}, False, False, {"GRPC_VERBOSITY": "NONE", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}),
        ({}, False, True, {"GRPC_VERBOSITY": "NONE"}),
        ({}, True, True, {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}),
        ({"GRPC_VERBOSITY": "DEBUG", "HF_HUB_DISABLE_PROGRESS_BARS": "0"}, False, False, None),
    ],
)
def test_libraries_write_nothing_beside_the_one_line_of_a_command(
    typed: dict[str, str],
    is_service: bool,
    is_terminal: bool,
    seen: dict[str, str] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = dict(typed)
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(lifetime, "_long_running", [is_service])
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    with pytest.raises(SystemExit):
        run_command(lambda: None)
    assert environment == (typed if seen is None else seen)
