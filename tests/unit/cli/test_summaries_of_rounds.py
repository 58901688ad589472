"""Screens and pages of many rounds ask for their numbers of clients, not for the clients; JSON has all that there is."""

from typing import Any

import pytest
from typer.testing import CliRunner
from unit.cli.test_status_screen import START, run

from pluralllm.cli import view_commands
from pluralllm.cli.__main__ import app
from pluralllm.common.errors.tree import NotFound
from pluralllm.experiment.commands import report

ROUND = {
    "name": "runs/r/rounds/1",
    "outcome": "closed",
    "base_version": 0,
    "version": 1,
    "reason": "",
    "update_time": START,
}


class Rounds:
    """A coordinator that notes whether it is asked for summaries of rounds."""

    def __init__(self) -> None:
        self.asked: list[bool] = []

    def get_run(self, _name: str) -> dict[str, Any]:
        return run(name="runs/r")

    def rounds(self, _run: str, _limit: int | None = None, *, summary: bool = False) -> list[dict[str, Any]]:
        self.asked.append(summary)
        return [{**ROUND, "updates": 7, "cohort_size": 9}]

    def evaluations(self, _run: str) -> list[dict[str, Any]]:
        raise NotFound(what="run", name="r")  # the report ends here: its rounds have been read


@pytest.mark.parametrize(("words", "summary"), [(["rounds"], True), (["rounds", "--json"], False)])
def test_rounds_are_listed_by_their_numbers_of_clients(
    words: list[str], summary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = Rounds()
    monkeypatch.setattr(view_commands, "remote", lambda _: rounds)
    done = CliRunner().invoke(app, words)
    assert rounds.asked == [summary], done.output
    if summary:
        assert done.stdout.split("\n")[1].split()[:6] == ["1", "closed", "0", "1", "7", "9"]


def test_a_report_reads_no_receipts(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Rounds()
    monkeypatch.setattr(report, "remote", lambda _: rounds)
    with pytest.raises(NotFound):
        report.report("r")
    assert rounds.asked == [True]
