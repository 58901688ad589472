"""The commands that look and change nothing, as a person types them."""

import pytest
from typer.testing import CliRunner

from pluralllm.common.process.exits import USAGE
from pluralllm.server.__main__ import app


@pytest.mark.parametrize("options", [[], ["--state-dir", "somewhere", "--json"]])
def test_the_old_name_of_verify_answers_with_the_new_one(options: list[str]) -> None:
    done = CliRunner().invoke(app, ["audit", *options])
    assert done.exit_code == USAGE
    assert "is now pluralllm-server verify" in done.stderr
    assert not done.stdout


def test_help_shows_verify_alone() -> None:
    shown = CliRunner().invoke(app, ["--help"]).stdout.split()
    assert "verify" in shown
    assert "audit" not in shown
