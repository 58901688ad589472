"""An older policy file goes on working, and its owner reads once in the log which new limits hold."""

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from pluralllm.client.disclosure.missing_keys import report_missing_keys
from pluralllm.client.disclosure.policy import DEFAULT_POLICY, NEW_KEYS, Policy, load_policy


def reported(folder: Path, text: str) -> list[Any]:
    """Starts a client with this policy file and returns what it logs about missing keys."""
    file = folder / "policy.toml"
    file.write_text(text)
    with capture_logs() as lines:
        report_missing_keys(load_policy(file), file, folder)
    return lines


def test_each_missing_key_is_logged_once_with_the_value_that_holds(tmp_path: Path) -> None:
    (line,) = reported(tmp_path, "min_cohort = 2\n")
    assert line["event"] == "policy.keys_missing"
    assert line["file"] == str(tmp_path / "policy.toml")
    assert set(line["values"]) == NEW_KEYS
    assert line["values"]["max_runs_a_day"] == Policy().max_runs_a_day
    assert reported(tmp_path, "min_cohort = 2\n") == []


def test_a_key_that_went_missing_later_is_logged_then(tmp_path: Path) -> None:
    whole = "".join(line + "\n" for line in DEFAULT_POLICY.splitlines() if not line.startswith("max_runs_a_day"))
    assert list(reported(tmp_path, whole)[0]["values"]) == ["max_runs_a_day"]
    less = "".join(line + "\n" for line in whole.splitlines() if not line.startswith("max_task_minutes"))
    assert list(reported(tmp_path, less)[0]["values"]) == ["max_task_minutes"]
    assert reported(tmp_path, less) == []


def test_a_whole_file_is_no_reason_for_a_notice(tmp_path: Path) -> None:
    assert reported(tmp_path, DEFAULT_POLICY) == []
    assert not (tmp_path / "disclosure").exists()


@pytest.mark.parametrize("content", ["{", "7", "[1]"])
def test_a_damaged_notice_costs_at_most_a_second_log_line(tmp_path: Path, content: str) -> None:
    assert reported(tmp_path, "") != []
    (tmp_path / "disclosure" / "reported_keys.json").write_text(content)
    assert len(reported(tmp_path, "")) == 1
    assert reported(tmp_path, "") == []
