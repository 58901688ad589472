"""The figure of alignment against the number of training groups: its series, its numbers, and a page without test groups."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.synthetic_results import SMALL, TEST, Method, records_of, write_results

from pluralllm.experiment.report.experiment import experiment_page
from pluralllm.experiment.report.growth import flat, growth_finding, growth_of, growth_picture, growth_table, names_of
from pluralllm.experiment.report.study import Study, study_of
from pluralllm.experiment.results import read_results

pytestmark = pytest.mark.seconds

Trial = tuple[int, float, dict[str, Any]]  # training groups, alignment, changes of the run spec (or another cohort)
SHORT: Sequence[Trial] = [(8, 0.82, {}), (4, 0.80, {}), (64, 0.84, {})]
LONG: Sequence[Trial] = [(16, 0.83, {"rounds": 120}), (64, 0.85, {"rounds": 120})]


def written(folder: Path, trials: Sequence[Trial], *, tested: bool = False) -> Path:
    """Writes invented results of methods that differ in their training groups; without test groups if not `tested`."""
    folder.mkdir(exist_ok=True)
    methods = [
        Method(f"{groups} groups {number}", end=end, context_gain=0.02)
        for number, (groups, end, _) in enumerate(trials)
    ]
    for method, (groups, _, changes) in zip([*methods, *SMALL[-3:]], [*trials, *[(0, 0.0, {})] * 3], strict=True):
        header, *records = records_of(method, methods, (0,), 0, 2, 60)
        if groups:
            names = [f"group {number}" for number in range(groups)]
            own_cohort = changes.get("cohort", 16)
            taking_part = {"groups": {"train": names}, "round": {"target_clients": min(groups, own_cohort)}}
            header["spec"] |= {**taking_part, **{key: value for key, value in changes.items() if key != "cohort"}}
        for settings, (_, _, own) in zip(header["experiment"]["methods"], trials, strict=True):
            settings["cohort"] = own.get("cohort", 16)
        kept = [record for record in records if tested or record.get("part") != "test"]
        for record in kept:
            if not tested and record["kind"] == "point":
                record["alignment"] = {name: score for name, score in record["alignment"].items() if name not in TEST}
        lines = (json.dumps(record) + "\n" for record in [header, *kept])
        (folder / f"{method.name.replace(' ', '-')}.seed0.jsonl").write_text("".join(lines))
    return folder


def study(folder: Path) -> Study:
    return study_of(read_results(folder))


def test_a_series_has_its_methods_in_rising_number_of_groups(tmp_path: Path) -> None:
    series = growth_of(study(written(tmp_path, [*LONG, *SHORT, (64, 0.86, {"rounds": 240})])))
    assert {name: [one.groups for one in found] for name, found in series.items()} == {
        "60 rounds": [4, 8, 64],
        "120 rounds": [16, 64],
        "240 rounds": [64],  # a point beside the others
    }
    assert list(series) == ["60 rounds", "120 rounds", "240 rounds"]  # the longer series first
    first = series["60 rounds"][0]
    assert (first.cohort, series["60 rounds"][2].cohort) == (4, 16)
    assert first.another == pytest.approx(first.line.mean.value - 0.02, abs=1e-6)


def test_one_series_needs_no_name_and_one_number_of_groups_is_no_series(tmp_path: Path) -> None:
    assert list(growth_of(study(written(tmp_path / "one", SHORT)))) == [""]
    alone = study(written(tmp_path / "two", [(8, 0.8, {}), (8, 0.81, {"rounds": 70})]))
    assert growth_of(alone) == {}
    assert (growth_picture(alone), growth_table(alone), growth_finding(alone)) == (None, None, None)
    assert growth_of(study(write_results(tmp_path / "plain", SMALL, seeds=(0,), draws=1, questions=60))) == {}


def test_a_series_is_named_by_what_sets_it_apart() -> None:
    settings = [
        flat(
            {"rounds": 60, "training": {"local_steps": 12}, "predictor": {"architecture": "x"}, "groups in a round": 16}
        ),
        flat(
            {"rounds": 30, "training": {"local_steps": 12}, "predictor": {"architecture": "y"}, "groups in a round": 32}
        ),
    ]
    assert names_of(settings) == [
        "60 rounds, architecture x, 16 groups in a round",
        "30 rounds, architecture y, 32 groups in a round",
    ]


def test_another_cohort_is_another_series(tmp_path: Path) -> None:
    series = growth_of(study(written(tmp_path, [*SHORT, *((groups, end, {"cohort": 32}) for groups, end, _ in SHORT)])))
    assert {name: [one.cohort for one in found] for name, found in series.items()} == {
        "16 groups in a round": [4, 8, 16],
        "32 groups in a round": [4, 8, 32],
    }


def test_a_limit_of_updates_makes_no_other_series(tmp_path: Path) -> None:
    trials = [(4, 0.80, {}), (8, 0.82, {"aggregation": {"max_delta_norm": 16.0}})]
    assert [[one.groups for one in found] for found in growth_of(study(written(tmp_path, trials))).values()] == [[4, 8]]


def test_validation_groups_are_shown_where_no_test_group_was_scored(tmp_path: Path) -> None:
    without, tested = study(written(tmp_path / "a", SHORT)), study(written(tmp_path / "b", SHORT, tested=True))
    assert (without.shown, tested.shown) == ("validation", "test")
    for one, words in ((without, "validation groups"), (tested, "unseen groups")):
        drawn, table, finding = growth_picture(one), growth_table(one), growth_finding(one)
        assert drawn is not None
        assert table is not None
        assert finding is not None
        assert words in drawn.alt
        assert words in table.caption.lower()
        assert words in finding.text


def test_the_table_has_scores_gain_and_costs_of_each_number_of_groups(tmp_path: Path) -> None:
    made = study(written(tmp_path, SHORT))
    table = growth_table(made)
    assert table is not None
    assert [row.cells[0] for row in table.rows] == ["4", "8", "64"]
    for row, one in zip(table.rows, growth_of(made)[""], strict=True):
        cells = dict(zip(table.columns, row.cells, strict=True))
        assert cells["mean alignment"].startswith(f"{one.line.mean.value:.4f} (")
        assert cells["worst group"] == f"{one.line.worst.value:.4f} {one.line.worst_group}"
        assert cells["context gain"] == "+0.0200"
        assert cells["in a round"] == str(min(one.groups, 16))
        assert float(cells["bytes a client and round"].split()[0]) * one.cohort * 60 == pytest.approx(
            16 * 2.8 * 60, rel=0.01
        )
        assert cells["bytes in all"] == "2.69 GB"
        assert cells["seconds of computing"].endswith(" s")


def test_the_figure_has_the_numbers_and_both_axes_have_titles(tmp_path: Path) -> None:
    drawn = growth_picture(study(written(tmp_path, [*SHORT, *LONG])))
    assert drawn is not None
    best = growth_of(study(tmp_path))["120 rounds"][-1]
    assert f"64 groups, 120 rounds: mean {best.line.mean.value:.3f}, worst {best.line.worst.value:.3f}" in drawn.alt
    assert f"another's context {best.another:.3f}" in drawn.alt
    assert "logarithmic" in drawn.caption
    assert drawn.png.startswith(b"\x89PNG")


def test_a_page_without_test_groups_is_about_the_validation_groups(tmp_path: Path) -> None:
    page = experiment_page(written(tmp_path, SHORT))
    sections = {section.title: section for section in page.sections}
    assert [picture.name for picture in sections["Do more training groups help?"].pictures] == ["growth"]
    assert (
        sections["Which method serves unseen groups best?"]
        .tables[0]
        .caption.startswith("Validation groups, means over 3 groups")
    )
    assert not sections["Validation groups, each"].is_folded
    assert "What does it cost to reach a score?" not in sections
    assert any("number of groups that train" in finding.text for finding in page.findings)
