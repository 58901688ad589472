"""The commands that look and change nothing, as a person types them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pluralllm.common.process.exits import USAGE
from pluralllm.server.__main__ import app

pytestmark = pytest.mark.seconds


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


@pytest.mark.parametrize(("files", "is_enough"), [(4095, False), (4096, True)])
def test_doctor_warns_of_a_low_limit_of_open_files(tmp_path: Path, files: int, is_enough: bool) -> None:
    command = ["sh", "-c", f'ulimit -n {files} && exec "$@"', "sh", sys.executable, "-m", "pluralllm.server", "doctor"]
    done = subprocess.run(
        [*command, "--state-dir", str(tmp_path), "--json"], capture_output=True, text=True, timeout=60, check=False
    )
    [check] = [check for check in json.loads(done.stdout)["checks"] if check["name"] == "open files"]
    assert check["ok"] is is_enough
    assert check["result"].startswith(f"{files} for a coordinator that is started here: room for 17")
    assert ("LimitNOFILE=65536" in check["fix"]) is not is_enough
