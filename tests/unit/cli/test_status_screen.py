"""The status screen of a run, drawn from fixed values."""

import datetime
import io
from typing import Any

import pytest
from rich.console import Console, RenderableType

from pluralllm.cli.status_screen import (
    age,
    mean_alignment,
    members_table,
    rounds_table,
    runs_table,
    size,
    status_screen,
)

NOW = datetime.datetime(2026, 1, 1, 0, 2, tzinfo=datetime.UTC)
START = "2026-01-01T00:00:00Z"
GROUPS = ("Foundry", "Goldcrest", "Greenhill", "Harbourland", "Northmark", "Old Valley", "Riverton", "Stonebridge")


MEMBER = {
    "name": "members/ann",
    "role": "client",
    "group": "G",
    "group_role": "train",
    "runs": [],
    "state": "active",
    "expire_time": "2026-01-31T00:02:00Z",
    "key_sha256": "ab" * 32,
    "live": False,
    "last_seen_time": START,
    "training_questions": 9,
    "task": "",
}


def person(group: str, state: str = "idle", reason: str = "", **changes: Any) -> dict[str, Any]:
    client = group.lower().replace(" ", "-")
    found = {"client": client, "group": group, "role": "train", "state": state, "reason": reason}
    return {**found, "stage": "", "progress": 0.0, "last_seen_time": START, "weight": 0.125, **changes}


def score(group: str, version: int, alignment: float | None, reason: str = "unspecified") -> dict[str, Any]:
    client = group.lower().replace(" ", "-")
    facts = {"group": group, "client": client, "role": "train", "version": version, "alignment_score": alignment}
    base2, questions = (None, 0) if alignment is None else (0.5, 12)
    return {
        **facts,
        "alignment_score_base2": base2,
        "wasserstein_score": None,
        "questions": questions,
        "not_reported": reason,
    }


def kept(group: str, reason: str = "too_few_questions") -> dict[str, Any]:
    """Returns the evaluation of a group that does not report its score."""
    return score(group, 5, None, reason)


def run(**changes: Any) -> dict[str, Any]:
    values = {
        "name": "runs/demo",
        "phase": "collecting",
        "paused": False,
        "outcome": "",
        "outcome_reason": "",
        "round": 7,
        "rounds": 30,
        "version": 6,
        "version_digest": "0123456789abcdef" * 4,
        "create_time": START,
        "phase_start_time": START,
        "received_bytes": 123_456_789,
        "sent_bytes": 2_222_222_222,
        "participants": [person(group) for group in GROUPS],
        "evaluations": [score(group, 5, 0.75) for group in GROUPS],
        "previous_evaluations": [score(group, 0, 0.5) for group in GROUPS],
        "fairness": {
            "index": 0.9987,
            "coefficient_of_variation": 0.0321,
            "min_alignment_score": 0.7,
            "min_group": "Foundry",
        },
        "refusals": [],
        "next": "3 of 6 updates; quorum is 4, deadline in 512 s, then extend",
    }
    return {**values, **changes}


def shown(screen: RenderableType, width: int = 80) -> list[str]:
    """Returns the lines on a terminal of this width."""
    out = io.StringIO()
    Console(file=out, width=width).print(screen)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def line_of(lines: list[str], start: str) -> str:
    return next(line for line in lines if line.startswith(start))


def crowded() -> dict[str, Any]:
    """Returns a run whose clients are all late, with many refusals and long messages."""
    late = [person(group, "lost", f"its lease ran out: silent for {n} s") for n, group in enumerate(GROUPS)]
    late[0]["role"] = "held_out"
    message = (
        "The update has 3 NaN or infinite values, the first in layers.0.attention.weight. Look for a too high rate."
    )
    refusals = [{"round": n, "client": "northmark", "reason": "NOT_FINITE", "message": message} for n in range(20)]
    return run(participants=late, refusals=refusals)


def test_crowded_status_of_eight_groups_fits_a_small_terminal() -> None:
    lines = shown(status_screen(crowded(), NOW))
    assert len(lines) <= 24
    assert max(len(line) for line in lines) <= 80


def test_head_says_run_round_phase_since_when_and_version() -> None:
    head = shown(status_screen(run(), NOW))[:2]
    assert head[0] == "runs/demo  round 7 of 30  collecting for 2 min"
    assert head[1] == "version 6 (0123456789ab)  received 123.5 MB, sent 2.2 GB since its start"


def test_who_is_late_is_told_with_the_whole_reason() -> None:
    people = [person("Foundry", "done"), person("Riverton", "working", "slow: 42% after 312 s", stage="train")]
    lines = shown(status_screen(run(participants=people), NOW))
    assert "riverton: slow: 42% after 312 s" in lines
    assert not any(line.startswith("foundry:") for line in lines)


def test_more_late_clients_than_fit_are_counted() -> None:
    lines = shown(status_screen(crowded(), NOW))
    assert sum("its lease ran out" in line for line in lines) == 4
    assert "and 4 more: status --json has all" in lines


@pytest.mark.parametrize(("before", "arrow"), [(0.70, "↑ +0.0500"), (0.80, "↓ -0.0500"), (0.7501, "→ -0.0001")])
def test_trend_compares_with_the_evaluation_before(before: float, arrow: str) -> None:
    lines = shown(status_screen(run(previous_evaluations=[score("Foundry", 0, before)]), NOW))
    assert line_of(lines, "Foundry").endswith(arrow)
    assert "0.7500" in line_of(lines, "Foundry")


def test_first_evaluation_has_no_trend() -> None:
    lines = shown(status_screen(run(previous_evaluations=[]), NOW))
    assert line_of(lines, "Foundry").endswith("0.7500")


def test_progress_of_a_working_client_is_shown() -> None:
    people = [person("Foundry", "working", stage="train", progress=0.421)]
    assert "train 42%" in line_of(shown(status_screen(run(participants=people), NOW)), "Foundry")


def test_held_out_groups_come_last_and_are_marked_even_in_a_narrow_terminal() -> None:
    people = [person("A" * 40, role="held_out"), person("Foundry")]
    lines = shown(status_screen(run(participants=people), NOW), width=60)
    marked = next(index for index, line in enumerate(lines) if line.startswith("AAA"))
    assert lines[marked - 1].startswith("Foundry")
    assert "*" in lines[marked]
    assert "*" not in lines[marked - 1]
    assert "* held out: evaluated, never trains" in lines


def test_fairness_and_worst_group_are_shown() -> None:
    text = " ".join(shown(status_screen(run(), NOW)))
    assert "worst 0.7000 (Foundry), fairness 0.9987 (CoV 0.0321)" in text


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (0.02, "(CoV 0.0321), context gain +0.0200"),
        (0.0, "context gain +0.0000: these predictions do not depend on the group"),
        (None, "context gain not known, so the predictions may be the same for every group"),
    ],
)
def test_the_context_gain_is_shown_and_predictions_that_ignore_the_group_are_named(
    gain: float | None, words: str
) -> None:
    evaluations = [score(group, 5, 0.75) | {"context_gain": gain} for group in GROUPS]
    text = " ".join(shown(status_screen(run(evaluations=evaluations), NOW)))
    assert words in text
    assert ("do not depend" in text) == (gain == 0)


@pytest.mark.parametrize(("number", "names"), [(3, "north, old, south: "), (5, "north, old, south and 2 more: ")])
def test_clients_with_the_same_reason_stand_in_one_line(number: int, names: str) -> None:
    groups = ("north", "old", "south", "west", "yard")[:number]
    people = [person(group, "lost", "takes no part: MODEL_UNAVAILABLE", client=group) for group in groups]
    lines = shown(status_screen(run(participants=[*people, person("east", "away", "not connected")]), NOW))
    assert [line for line in lines if "MODEL_UNAVAILABLE" in line] == [f"{names}takes no part: MODEL_UNAVAILABLE"]
    assert sum("not connected" in line for line in lines) == 1


def test_a_group_that_keeps_its_score_is_shown_with_the_reason_and_the_mean_says_over_how_many_groups() -> None:
    scores = [kept("Foundry"), kept("Old Valley"), kept("Riverton", "budget_spent")]
    reporting = [score(group, 5, 0.75) for group in GROUPS if group not in ("Foundry", "Old Valley", "Riverton")]
    lines = shown(status_screen(run(evaluations=[*scores, *reporting]), NOW))
    assert line_of(lines, "Foundry").endswith("not reported")
    assert line_of(lines, "Goldcrest").endswith("0.7500  ↑ +0.2500")
    assert "not reported: too few questions: Foundry, Old Valley" in lines
    assert "not reported: budget spent: Riverton" in lines
    assert "mean alignment 0.7500 over 5 of 8 groups, worst 0.7000 (Foundry)" in " ".join(lines)


def test_where_no_group_reports_its_score_the_screen_says_so() -> None:
    lines = shown(status_screen(run(evaluations=[kept(group) for group in GROUPS], fairness=None), NOW))
    assert "version 5: no group reports its alignment" in lines
    assert "not reported: too few questions: Foundry, Goldcrest, Greenhill, Harbourland" in " ".join(lines)


def test_a_score_after_one_that_was_kept_has_no_trend() -> None:
    lines = shown(status_screen(run(previous_evaluations=[kept(group) for group in GROUPS]), NOW))
    assert line_of(lines, "Foundry").endswith("0.7500")


def test_reasons_for_scores_that_are_kept_fit_a_small_terminal_with_everything_else() -> None:
    reasons = ["too_few_questions", "budget_spent"] * 4
    silent = [kept(group, reason) for group, reason in zip(GROUPS, reasons, strict=True)]
    lines = shown(status_screen({**crowded(), "evaluations": silent, "fairness": None}, NOW))
    assert len(lines) <= 24
    assert max(len(line) for line in lines) <= 80
    assert sum("not reported" in line for line in lines) == len(GROUPS) + 2


def test_the_weight_of_each_member_in_the_newest_version_is_shown() -> None:
    people = [person("Foundry", weight=0.987), person("Riverton", weight=0.013), person("Goldcrest", weight=None)]
    lines = shown(status_screen(run(participants=people), NOW))
    assert "weight" in line_of(lines, "group")
    shares = [line_of(lines, group).split()[3] for group in ("Foundry", "Riverton", "Goldcrest")]
    assert shares == ["98.7%", "1.3%", "-"]


def test_declared_noise_is_shown_as_declared_for_each_group_and_not_at_all_if_nobody_states_anything() -> None:
    noise = {"noised": True, "epsilon": 4.0, "delta": 1e-6, "unit": "respondent"}
    people = [
        person("Foundry", noise=noise),
        person("Harbourland", noise={**noise, "noised": False}),
        person("Riverton"),
    ]
    lines = shown(status_screen(run(participants=people), NOW), 120)
    assert "noise declared: epsilon 4, delta 1e-06, unit respondent: Foundry" in lines
    assert "noise declared: not noised: Harbourland" in lines
    assert "noise declared: not stated: Riverton" in lines
    silent = shown(status_screen(run(participants=[person("Riverton")]), NOW), 120)
    assert not any("noise" in line for line in silent)


def test_many_statements_about_noise_are_counted() -> None:
    people = [
        person(group, noise={"noised": True, "epsilon": number, "delta": 1e-6, "unit": "respondent"})
        for number, group in enumerate(GROUPS)
    ]
    lines = shown(status_screen(run(participants=people), NOW), 120)
    assert sum(line.startswith("noise declared: ") for line in lines) == 3
    assert "and 5 other statements about noise" in lines


def test_the_mean_over_one_group_is_over_one_group() -> None:
    assert mean_alignment([score("Foundry", 5, 0.5)]) == "0.5000 over 1 group"
    assert mean_alignment([score("Foundry", 5, 0.5), kept("Riverton")]) == "0.5000 over 1 of 2 groups"
    assert mean_alignment([kept("Riverton")]) == "-"


def test_before_the_first_evaluation_there_is_no_fairness_line() -> None:
    lines = shown(status_screen(run(evaluations=[], previous_evaluations=[], fairness=None), NOW))
    assert not any("fairness" in line for line in lines)
    assert line_of(lines, "Foundry").endswith("-")


def test_what_the_sums_of_private_rounds_say_is_shown() -> None:
    scored: dict[str, Any] = {"round": 7, "base_version": 6, "updates": 5, "clipped_updates": 2, "scored": 4}
    scored |= {"mean_alignment_score": 0.75, "score_histogram": [0] * 24 + [4] + [0] * 7}
    screen = "\n".join(shown(status_screen(run(scored_sum=scored, newest_sum=scored), NOW), 180))
    assert "scores of version 6 inside a sum: mean alignment 0.7500 over 4 of 5 members, worst 0.75-0.78" in screen
    assert "round 7: 2 of 5 updates were scaled down" in screen
    assert "inside a sum" not in "".join(shown(status_screen(run(scored_sum=None, newest_sum=None), NOW)))


def test_newest_refusals_are_shown() -> None:
    lines = shown(status_screen(crowded(), NOW))
    assert [line.split(":")[0] for line in lines if line.startswith("refused")] == [
        f"refused in round {number}" for number in (17, 18, 19)
    ]


def test_ended_run_says_how_and_why() -> None:
    ended = run(phase="ended", outcome="cancelled", outcome_reason="the survey was wrong", next="nothing")
    assert "cancelled: the survey was wrong for 2 min" in shown(status_screen(ended, NOW))[0]


def test_paused_run_says_so() -> None:
    assert "waiting (paused)" in shown(status_screen(run(phase="waiting", paused=True), NOW))[0]


def test_what_happens_next_stands_above_the_groups_where_a_small_terminal_shows_it() -> None:
    many = [person(f"Group {number}") for number in range(14)]
    scores = [score(one["group"], 5, 0.75) for one in many]
    lines = shown(status_screen(run(participants=many, evaluations=scores, previous_evaluations=[]), NOW))
    assert lines[2] == "next: 3 of 6 updates; quorum is 4, deadline in 512 s, then extend"
    assert lines[3].startswith("version 5: mean alignment 0.7500 over 14 groups"), "the scores come before the groups"
    assert sum(line.startswith("Group") for line in lines[:24]) == 14


@pytest.mark.parametrize("name", ["[bold]loud[/bold]", "[/nothing]", "a\x1b[2Jb", "a\nb"])
def test_names_written_by_others_are_neither_markup_nor_control_characters(name: str) -> None:
    hostile = run(
        participants=[person(name, "lost", name)],
        refusals=[{"round": 1, "client": "c", "reason": "R", "message": name}],
        next=name,
        fairness={"index": 1.0, "coefficient_of_variation": 0.0, "min_alignment_score": 0.5, "min_group": name},
    )
    row = {"name": "runs/r/rounds/1", "outcome": "abandoned", "base_version": 0, "version": None, "reason": name}
    screens = (
        status_screen(hostile, NOW),
        members_table([{**MEMBER, "group": name}], NOW),
        rounds_table([{**row, "updates": 0, "cohort_size": 0, "update_time": START}], NOW),
    )
    for screen in screens:
        text = "\n".join(shown(screen, width=200))
        assert "\x1b" not in text
        assert name.replace("\x1b", "\\x1b").replace("\n", " ") in text


def test_list_of_members_shows_the_first_digits_of_each_peer_key() -> None:
    peers = [{**MEMBER, "peer_key_sha256": "cd" * 32}, {**MEMBER, "peer_key_sha256": ""}]
    lines = shown(members_table(peers, NOW), width=220)
    assert [line.split()[6:9] for line in lines[1:]] == [["abababab", "cd" * 8, "no"], ["abababab", "-", "no"]]


@pytest.mark.parametrize(
    ("reads", "line"),
    [
        ("single", "the coordinator reads single updates"),
        ("sums", "private rounds: the coordinator reads sums of updates, no single one"),
        ("unspecified", None),
        (None, None),
    ],
)
def test_the_screen_of_a_run_says_what_the_coordinator_reads(reads: str | None, line: str | None) -> None:
    lines = shown(status_screen(run(updates_read=reads), NOW))
    assert [one for one in lines if "the coordinator reads" in one] == ([] if line is None else [line])


def test_list_of_members_shows_the_group_of_a_client_and_the_runs_of_an_observer() -> None:
    observer = {
        **MEMBER,
        "name": "members/eve",
        "role": "observer",
        "group": "",
        "group_role": None,
        "runs": ["a", "b"],
    }
    lines = shown(members_table([MEMBER, observer], NOW), width=220)
    assert lines[1].split()[:3] == ["ann", "client", "G"]
    assert ("not stated" in lines[1], "not stated" in lines[2]) == (True, False)
    noise = {"noised": True, "epsilon": 4.0, "delta": 1e-6, "unit": "respondent"}
    assert " epsilon 4 " in shown(members_table([{**MEMBER, "noise": noise}], NOW), width=220)[1]
    assert lines[2].split()[:4] == ["eve", "observer", "a,", "b"]


def test_a_list_of_summaries_shows_the_same_means_without_the_evaluations() -> None:
    fairness = {**run()["fairness"], "mean_alignment_score": 0.75, "reporting_groups": 7, "groups": 8}
    assert "0.7500 over 7 of 8 groups" in shown(runs_table([run(evaluations=[], fairness=fairness)], NOW))[1]
    assert " - " in shown(runs_table([run(evaluations=[], fairness=None)], NOW))[1]
    of_earlier_release = {**fairness, "mean_alignment_score": 0.0, "reporting_groups": 0, "groups": 0}
    assert "0.7500 over 8 groups" in shown(runs_table([run(fairness=of_earlier_release)], NOW))[1]


def test_list_of_runs_shows_outcome_and_mean_alignment() -> None:
    ended = run(phase="ended", outcome="completed")
    line = shown(runs_table([ended], NOW))[1].split("  ")
    assert [part.strip() for part in line if part.strip()] == [
        "demo",
        "completed",
        "7 of 30",
        "6",
        "0.7500 over 8 groups",
        "2 min ago",
    ]


def test_an_archived_run_is_called_so_in_the_list_and_on_its_screen() -> None:
    archived = run(phase="ended", outcome="cancelled", outcome_reason="a slip", archived=True)
    assert "cancelled (archived)" in shown(runs_table([archived], NOW))[1]
    assert "collecting (paused)" in shown(runs_table([run(paused=True)], NOW))[1]
    assert "cancelled (archived): a slip" in shown(status_screen(archived, NOW))[0]


@pytest.mark.parametrize(
    ("time", "text"),
    [(None, "-"), (START, "2 min"), ("2026-01-01T00:01:30Z", "30 s"), ("2025-12-29T00:00:00Z", "3 d")],
)
def test_age_is_told_in_the_largest_fitting_unit(time: str | None, text: str) -> None:
    assert age(time, NOW) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_500_000_000_000, "2500.0 GB")]
)
def test_size_is_told_in_a_unit_a_person_reads(count: int, text: str) -> None:
    assert size(count) == text
