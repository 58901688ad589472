"""The demo's last table, from evaluations."""

import importlib.util
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.documented import ROOT

RUN = {"version": 3, "received_bytes": 1, "sent_bytes": 1}


def demo() -> Any:
    spec = importlib.util.spec_from_file_location("demo_under_test", ROOT / "deploy" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DEMO = demo()


def score(group: str, version: int, value: float | None, role: str = "train") -> dict[str, Any]:
    reason = "too_few_questions" if value is None else "unspecified"
    facts = {"group": group, "version": version, "alignment_score": value, "role": role, "not_reported": reason}
    return {**facts, "questions": 0 if value is None else 40}


def printed(*evaluations: dict[str, Any]) -> str:
    out = io.StringIO()
    DEMO.summary(list(evaluations), RUN, Path("folder"), Console(file=out, width=200))
    return out.getvalue()


def test_a_group_that_keeps_its_score_is_in_the_table_with_the_reason_and_in_no_mean() -> None:
    kept = [score("Foundry", version, None) for version in (0, 3)]
    text = printed(
        *kept,
        score("Northmark", 0, 0.6),
        score("Northmark", 3, 0.7),
        score("Z", 0, 0.5, "held_out"),
        score("Z", 3, 0.6, "held_out"),
    )
    line = next(line for line in text.splitlines() if line.strip().startswith("Foundry"))
    assert "not reported: too few questions" in line
    assert "all groups: mean 0.6500 over 2 of 3 groups" in text
    assert "held out: mean 0.6000 over 1 group" in text


def test_without_a_group_that_reports_both_scores_the_demo_has_failed() -> None:
    with pytest.raises(DEMO.DemoFailed, match="no group reported"):
        printed(score("Foundry", 0, None), score("Foundry", 3, 0.9))


def test_a_mean_that_does_not_rise_is_a_failure() -> None:
    with pytest.raises(DEMO.DemoFailed, match="did not rise"):
        printed(score("Northmark", 0, 0.7), score("Northmark", 3, 0.6))
