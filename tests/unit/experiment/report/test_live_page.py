"""The report of a live run, from the coordinator's answers."""

from typing import Any

import pytest

from pluralllm.experiment.report.live import Answers, at_round, common_rounds, live_run, moved_bytes
from pluralllm.experiment.report.live_page import live_findings, live_page
from pluralllm.experiment.report.page import html_of

GROUPS = {"China": "held_out", "Japan": "held_out", "Egypt": "train", "Kenya": "train"}


def run(**changes: Any) -> dict[str, Any]:
    values = {
        "name": "runs/first",
        "spec_sha256": "a" * 64,
        "phase": "collecting",
        "outcome": "",
        "outcome_reason": "",
        "round": 5,
        "rounds": 30,
        "version": 3,
        "version_digest": "b" * 64,
        "create_time": "2026-01-01T10:00:00Z",
        "update_time": "2026-01-01T10:10:00Z",
        "received_bytes": 5_000_000,
        "sent_bytes": 6_000_000,
    }
    return values | changes


def a_round(number: int, version: int | None, outcome: str = "closed", reason: str = "") -> dict[str, Any]:
    return {
        "name": f"runs/first/rounds/{number}",
        "outcome": outcome,
        "reason": reason,
        "version": version,
        "cohort": ["a", "b"],
        "receipts": [{}, {}] if outcome == "closed" else [],
        "create_time": f"2026-01-01T10:0{number}:00Z",
        "update_time": f"2026-01-01T10:0{number}:30Z",
    }


def score(group: str, version: int, value: float) -> dict[str, Any]:
    return {
        "group": group,
        "client": group,
        "role": GROUPS[group],
        "version": version,
        "alignment_score": value,
        "questions": 40,
    }


def told(**changes: Any) -> Answers:
    values: dict[str, Any] = {
        "run": run(),
        "rounds": [
            a_round(5, None, "open"),
            a_round(4, 3),
            a_round(3, 2),
            a_round(2, None, "abandoned", "no quorum"),
            a_round(1, 1),
        ],
        "evaluations": [
            score(group, version, 0.65 + 0.03 * version + 0.01 * at)
            for version in (0, 1, 3)
            for at, group in enumerate(GROUPS)
            if (group, version) != ("Japan", 1)
        ],
        "members": None,
        "model": {"record_sha256": "c" * 64},
        "model_bytes": 1_000_000,
        "spec": {"seed": 1, "embedding": {"model": "m", "probes": ["a long vector"]}},
    }
    return Answers(**(values | changes))


def test_scores_stand_at_the_round_that_made_their_version() -> None:
    live = live_run(told())
    assert [row.number for row in live.rounds] == [1, 2, 3, 4, 5]
    assert {each.group: each.rounds for each in live.series} == {
        "China": (0, 1, 4),
        "Japan": (0, 4),
        "Egypt": (0, 1, 4),
        "Kenya": (0, 1, 4),
    }


def test_means_are_of_rounds_at_which_every_group_was_evaluated() -> None:
    unseen = live_run(told()).of_role("held_out")
    assert common_rounds(unseen) == (0, 4)
    assert at_round(unseen, 1) == {"China": pytest.approx(0.68)}
    assert common_rounds(()) == ()


def test_bytes_are_counted_from_the_size_of_a_version() -> None:
    assert moved_bytes(live_run(told())) == [4_000_000, 6_000_000, 10_000_000, 14_000_000, 16_000_000]
    assert moved_bytes(live_run(told(model_bytes=None))) is None


def test_findings_name_the_worst_group_and_the_reasons_of_lost_rounds() -> None:
    found = list(live_findings(live_run(told())))
    text = " ".join(" ".join((each.text, *each.details)) for each in found)
    assert "Unseen groups (2): mean alignment 0.745 after round 4, 0.655 after round 0; worst China with 0.740" in text
    assert "3 rounds closed, 1 abandoned; 6 updates received. round 2: no quorum" in text


def test_the_page_says_what_stays_with_the_partners() -> None:
    html = html_of(live_page(told(), "now"))
    assert "never leave the partners" in html
    assert html.count("<svg ") == 4
    assert "a long vector" not in html
    assert "&#34;seed&#34;: 1" in html


def test_a_run_without_rounds_or_evaluations_has_a_page_too() -> None:
    html = html_of(live_page(told(rounds=[], evaluations=[]), "now"))
    assert "No group has been evaluated yet" in html
    assert "<svg " not in html


def test_an_observer_gets_what_an_observer_may_see() -> None:
    html = html_of(live_page(told(model=None, model_bytes=None, spec=None), "now"))
    assert "told to administrators and clients only" in html
    assert html.count("<svg ") == 4


def test_one_group_alone_has_no_fairness() -> None:
    html = html_of(live_page(told(evaluations=[score("China", 0, 0.6), score("China", 3, 0.7)]), "now"))
    assert html.count("<svg ") == 3


def test_names_that_others_chose_cannot_change_the_page() -> None:
    GROUPS["<b>$x$</b>"] = "train"
    try:
        html = html_of(live_page(told(evaluations=[score("<b>$x$</b>", 0, 0.6), score("<b>$x$</b>", 3, 0.7)]), "now"))
    finally:
        del GROUPS["<b>$x$</b>"]
    assert "<b>" not in html


def test_an_ended_run_says_how() -> None:
    ended = run(phase="ended", outcome="cancelled", outcome_reason="the survey was wrong")
    assert live_page(told(run=ended), "now").subtitle.startswith("cancelled the survey was wrong, round 5 of 30")
