"""`pluralllm status --watch` ends with the run, or with exit code 3 when nothing goes on before somebody acts."""

from typing import Any

import pytest
from typer.testing import CliRunner
from unit.cli.test_status_screen import run

from pluralllm.cli import view_commands
from pluralllm.cli.__main__ import app
from pluralllm.operator import watching

BLOCKED = "a round needs 3 training clients, and 0 can take part"


class Standing:
    """A coordinator with one run, whose state is always the same."""

    def __init__(self, **state: Any) -> None:
        self.state = run(**{"sequence": 1, **state})

    def get_run(self, name: str) -> dict[str, Any]:
        return self.state

    def wait_for_event(self, name: str, after: int) -> None:
        """Returns at once."""


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ({"phase": "waiting", "blocked": BLOCKED}, 3),
        ({"phase": "ended", "outcome": "completed", "outcome_reason": "done", "blocked": BLOCKED}, 0),
        ({"phase": "ended", "outcome": "completed", "outcome_reason": "done"}, 0),
    ],
)
def test_watching_ends_with_what_it_would_wait_for(
    state: dict[str, Any], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_commands, "remote", lambda _: Standing(**state))
    monkeypatch.setattr(watching, "STANDSTILL_S", -1.0)
    done = CliRunner().invoke(app, ["status", "--watch"])
    assert done.exit_code == code, done.output
    assert (f"The run stands still: {BLOCKED}. Watch it again" in done.stderr) == (code == 3)
