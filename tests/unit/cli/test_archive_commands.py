"""`pluralllm run archive` and `unarchive` name one run; `pluralllm runs` lists archived runs only with --archived."""

from typing import Any

import pytest
from typer.testing import CliRunner
from unit.cli.test_status_screen import run

from pluralllm.cli import run_commands, view_commands
from pluralllm.cli.__main__ import app


class Archive:
    """A coordinator that notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []

    def archive_run(self, name: str) -> dict[str, Any]:
        self.asked.append(("archive", name))
        return run(phase="ended", outcome="completed", outcome_reason="done", archived=True)

    def unarchive_run(self, name: str) -> dict[str, Any]:
        self.asked.append(("unarchive", name))
        return run(phase="ended", outcome="completed", outcome_reason="done", archived=False)

    def runs(self, *, summary: bool, archived: bool) -> list[dict[str, Any]]:
        self.asked.append(("runs", archived))
        return [run()]


@pytest.mark.parametrize(
    ("line", "asked", "shown"),
    [
        ("run archive demo", ("archive", "demo"), "completed (archived): done"),
        ("run unarchive demo", ("unarchive", "demo"), "completed: done"),
        ("runs", ("runs", False), "collecting"),
        ("runs --archived", ("runs", True), "collecting"),
        ("runs --archived --json", ("runs", True), '"phase": "collecting"'),
    ],
)
def test_a_command_asks_for_what_it_says(
    line: str, asked: tuple[str, Any], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive()
    for module in (run_commands, view_commands):
        monkeypatch.setattr(module, "remote", lambda _: archive)
    done = CliRunner().invoke(app, line.split())
    assert done.exit_code == 0, done.output
    assert archive.asked == [asked]
    assert shown in done.output


@pytest.mark.parametrize("command", ["archive", "unarchive"])
def test_no_run_is_archived_without_a_name(command: str) -> None:
    assert CliRunner().invoke(app, ["run", command]).exit_code == 2
