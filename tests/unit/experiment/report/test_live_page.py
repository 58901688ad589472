"""The report of a live run, from the coordinator's answers."""

from typing import Any

import pytest

from pluralllm.experiment.report.live import Answers, LiveRun, Series, at_round, common_rounds, live_run, moved_bytes
from pluralllm.experiment.report.live_figures import ends, most_points
from pluralllm.experiment.report.live_page import groups_table, live_findings, live_page, rounds_table
from pluralllm.experiment.report.page import html_of

pytestmark = pytest.mark.seconds

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
        "participants": [],
    }
    return values | changes


def a_round(number: int, version: int | None, outcome: str = "closed", reason: str = "") -> dict[str, Any]:
    return {
        "name": f"runs/first/rounds/{number}",
        "outcome": outcome,
        "reason": reason,
        "version": version,
        "cohort_size": 2,
        "updates": 2 if outcome == "closed" else 0,
        "create_time": f"2026-01-01T10:0{number}:00Z",
        "update_time": f"2026-01-01T10:0{number}:30Z",
    }


def score(group: str, version: int, value: float | None, reason: str = "unspecified") -> dict[str, Any]:
    return {
        "group": group,
        "client": group,
        "role": GROUPS[group],
        "version": version,
        "alignment_score": value,
        "questions": 0 if value is None else 40,
        "not_reported": reason,
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


def test_a_group_that_keeps_its_scores_is_named_with_the_reason_and_means_are_over_the_others() -> None:
    scores = [score(group, version, 0.6 + 0.1 * version) for version in (0, 1) for group in ("China", "Egypt", "Kenya")]
    kept = [score("Japan", version, None, "too_few_questions") for version in (0, 1)]
    live = live_run(told(evaluations=[*scores, *kept]))
    assert {one.group: one.not_reported for one in live.series if one.not_reported} == {
        "Japan": "not reported: too few questions"
    }
    (unseen, trained, *_) = live_findings(live)
    assert unseen.text.startswith(
        "Unseen groups (1 of 2 report): mean alignment 0.700 after round 1, 0.600 after round 0"
    )
    assert unseen.details == ("Japan: not reported: too few questions",)
    assert trained.text.startswith("Training groups (2): mean alignment 0.700")
    html = html_of(live_page(live.answers, "now"))
    assert html.count("Japan") >= 3  # finding, caption, table
    assert "not reported: too few questions" in html


def test_the_newest_context_gains_are_in_the_table_and_predictions_that_ignore_the_group_are_named() -> None:
    def live_with(gain: float | None) -> LiveRun:
        older = [score(group, 0, 0.6) | {"context_gain": 0.5} for group in ("China", "Japan")]
        newer = [score(group, 1, 0.7) | {"context_gain": gain} for group in ("China", "Japan")]
        return live_run(told(evaluations=[*older, *newer]))

    (row, _) = groups_table(live_with(0.02)).rows
    assert "+0.0200" in row.cells
    unknown = "The mean context gain is not known, so the predictions may be the same for every group."
    named = "The mean context gain is +0.0010: these predictions do not depend on the group."
    assert named in [finding.text for finding in live_findings(live_with(0.001))]
    assert unknown in [finding.text for finding in live_findings(live_with(None))]
    assert not any("context gain" in finding.text for finding in live_findings(live_with(0.02)))


def test_a_group_whose_budget_is_spent_keeps_its_curve_and_counts_in_no_later_mean() -> None:
    scores = [score(group, version, 0.6) for version in (0, 1) for group in ("China", "Japan")]
    later = [score("China", 3, 0.8), score("Japan", 3, None, "budget_spent")]
    live = live_run(told(evaluations=[*scores, *later]))
    japan = next(one for one in live.series if one.group == "Japan")
    assert (japan.rounds, japan.questions, japan.not_reported) == ((0, 1), 40, "not reported: budget spent")
    (unseen, *_) = live_findings(live)
    assert unseen.text == "Unseen groups (1 of 2 report): mean alignment 0.800 after round 4, 0.600 after round 0."
    table = {row.cells[0]: row.cells[2:] for row in groups_table(live).rows}
    assert table["Japan"] == ("0.6000", "not reported: budget spent\n0.6000 after round 1", "+0.0000", "-", "40")
    assert "(no newest score)" in html_of(live_page(live.answers, "now"))


def test_a_run_of_which_no_group_reports_a_score_has_a_page_too() -> None:
    kept = [score(group, version, None, "too_few_questions") for version in (0, 1) for group in GROUPS]
    live = live_run(told(evaluations=kept))
    assert [one.text for one in live_findings(live)][:2] == [
        "Unseen groups (2): none reports its newest alignment.",
        "Training groups (2): none reports its newest alignment.",
    ]
    html = html_of(live_page(live.answers, "now"))
    assert html.count("<svg ") == 1  # of the rounds
    assert html.count("not reported: too few questions") == 8  # each group in a finding and in the table


def test_of_two_clients_of_one_group_the_one_that_reports_gives_the_score() -> None:
    both = [score("China", 0, None, "budget_spent"), score("China", 0, 0.5)]
    (china,) = live_run(told(evaluations=both)).series
    assert (china.scores, china.questions, china.not_reported) == ((0.5,), 40, "")


def test_the_page_says_what_stays_with_the_partners() -> None:
    html = html_of(live_page(told(), "now"))
    assert "never leave the partners" in html
    assert html.count("<svg ") == 4
    assert "a long vector" not in html
    assert "&#34;seed&#34;: 1" in html


def test_the_noise_that_members_declare_is_shown_as_declared() -> None:
    noise = {"noised": True, "epsilon": 4.0, "delta": 1e-6, "unit": "respondent"}
    people = [{"group": "Kenya", "noise": noise}, {"group": "China", "noise": None}]
    stated, silent = (
        [one for one in live_findings(live_run(told(run=run(participants=some)))) if "noise" in one.text]
        for some in (people, people[1:])
    )
    (finding,) = stated
    assert finding.text.startswith("1 of 2 members declare that their answers have noise")
    assert "Nobody but the partner can check it." in finding.text
    assert finding.details == ("China: not stated", "Kenya: epsilon 4, delta 1e-06, unit respondent")
    assert silent == []


def test_what_the_sums_of_private_rounds_say_is_told() -> None:
    scored: dict[str, Any] = {
        "round": 4,
        "base_version": 3,
        "updates": 5,
        "clipped_updates": 1,
        "scored": 4,
        "mean_loss": 1.25,
    }
    scored |= {"mean_base_distance": None, "mean_alignment_score": 0.75, "score_histogram": [0] * 24 + [4] + [0] * 7}
    texts = [one.text for one in live_findings(live_run(told(run=run(scored_sum=scored, newest_sum=scored))))]
    assert (
        "Scores of version 3 inside a sum: mean alignment 0.7500 over 4 of 5 members, worst 0.75-0.78; 4 in 0.75-0.78."
        in texts
    )
    assert "Private round 4: 1 of 5 updates were scaled down to the largest norm; their mean loss 1.2500." in texts


@pytest.mark.parametrize(
    ("loss", "distance", "end"),
    [
        (None, 0.25, "; mean distance of their base 0.2500."),
        (1.5, None, "; their mean loss 1.5000."),
        (None, None, "."),
    ],
)
def test_a_mean_that_no_member_said_is_left_out(loss: float | None, distance: float | None, end: str) -> None:
    newest = {"round": 4, "updates": 5, "clipped_updates": 1, "mean_loss": loss, "mean_base_distance": distance}
    texts = [one.text for one in live_findings(live_run(told(run=run(newest_sum=newest))))]
    assert f"Private round 4: 1 of 5 updates were scaled down to the largest norm{end}" in texts


def curve(group: str, *scores: float, **facts: Any) -> Series:
    return Series(group, "train", tuple(range(len(scores))), scores, 40, **facts)


def test_of_many_groups_the_worst_and_the_best_are_named() -> None:
    series = [curve(str(number), 0.1, number / 100) for number in range(50, 0, -1)]
    assert [one.group for one in ends(series, 5)] == ["1", "2", "48", "49", "50"]
    assert [one.group for one in ends(series[:3], 5)] == ["48", "49", "50"]


def test_the_lines_of_many_groups_have_fewer_points_each() -> None:
    assert [most_points([curve("a", 0.5)] * groups) for groups in (1, 20, 50, 1000)] == [200, 200, 80, 40]


def test_a_score_without_the_context_is_known_for_a_group_that_reports_its_gain() -> None:
    assert curve("a", 0.5, 0.7, context_gain=0.1).score_without_context == pytest.approx(0.6)
    assert curve("a", 0.7).score_without_context is None
    assert curve("a", 0.7, context_gain=0.1, not_reported="not reported: budget spent").score_without_context is None
    assert [curve("a", 0.5, 0.7).at(number) for number in (0, 1, 2)] == [0.5, 0.7, None]


def test_the_table_of_a_long_run_has_its_newest_rounds_and_all_that_were_abandoned() -> None:
    many = [a_round(1, 1) | {"name": f"runs/first/rounds/{number}"} for number in range(1, 1001)]
    many[6] |= {"outcome": "abandoned", "reason": "no quorum"}
    short, table = (rounds_table(live_run(told(rounds=rounds))) for rounds in (many[:10], many))
    assert (len(short.rows), short.note) == (10, "")
    assert [row.cells[0] for row in (table.rows[0], *table.rows[-2:])] == ["1000", "501", "7"]
    assert table.note == "The newest 500 rounds, and all that were abandoned."


def test_the_run_spec_is_folded_and_sections_with_pictures_are_questions() -> None:
    page = live_page(told(run=run(paused=True)), "now")
    assert page.subtitle.startswith("collecting (paused), round 5 of 30")
    spec = next(section for section in page.sections if section.code)
    assert (spec.title, spec.is_folded) == ("The run spec", True)
    assert all(section.title.endswith("?") for section in page.sections if section.pictures)


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
    assert live_page(told(run=ended), "now").subtitle.startswith("cancelled: the survey was wrong, round 5 of 30")
    archived = ended | {"archived": True, "outcome_reason": ""}
    assert live_page(told(run=archived), "now").subtitle.startswith("cancelled (archived), round 5 of 30")
