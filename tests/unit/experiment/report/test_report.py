"""The report of an experiment: its labels do not overlap, its sentences are true, and its page loads nothing."""

import re
from pathlib import Path

import numpy as np
import pytest
from support.synthetic_results import MANY, SMALL, Method, write_results

from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.experiment.convergence import NOT_REACHED, Reach
from pluralllm.experiment.report.experiment import experiment_page
from pluralllm.experiment.report.findings import amount, compared, findings, quick
from pluralllm.experiment.report.page import Page, Row, Section, Table, html_of, write_page
from pluralllm.experiment.report.study import study_of
from pluralllm.experiment.report.tables import reach_text
from pluralllm.experiment.report.theme import VARIABLES, inline, spread_out
from pluralllm.experiment.results import read_results
from pluralllm.experiment.summary import Estimate

EXPECTED = {
    "methods",
    "convergence",
    "groups-test",
    "fairness",
    "kinds",
    "contexts",
    "answers",
    "calibration",
    "groups-validation",
    "groups-train",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("small"), SMALL, seeds=(0, 1, 2), draws=2, questions=80)


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return experiment_page(folder)


def pictures(page: Page) -> dict[str, str]:
    return {picture.name: picture.svg for section in page.sections for picture in section.pictures}


# Labels


@pytest.mark.parametrize("seed", range(20))
def test_labels_are_a_gap_apart_and_in_order(seed: int) -> None:
    centres = np.random.default_rng(seed).uniform(0, 1, 12).tolist()
    places = spread_out(centres, 0.1)
    order = np.argsort(centres)
    assert (np.diff(np.array(places)[order]) >= 0.1 - 1e-9).all()
    assert np.mean(places) == pytest.approx(np.mean(centres))


def test_labels_with_room_stay_where_they_are() -> None:
    assert spread_out([0.5, 0.1, 0.9], 0.1) == pytest.approx([0.5, 0.1, 0.9])
    assert spread_out([], 0.1) == []
    assert spread_out([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])


# The page


def test_the_page_has_every_figure_with_a_text_for_who_cannot_see_it(page: Page) -> None:
    found = pictures(page)
    assert found.keys() == EXPECTED
    for svg in found.values():
        label = re.search(r'aria-label="([^"]+)"', svg)
        assert label
        assert len(label.group(1)) > 60


def test_the_page_needs_nothing_from_anywhere(page: Page) -> None:
    html = html_of(page)
    assert not re.search(r"<(?:script|link|iframe|img|object)\b", html)
    assert "@import" not in html
    links = re.findall(r"""(?:href|src)\s*=\s*["']([^"']+)""", html) + re.findall(r"url\(([^)]+)\)", html)
    assert links
    assert all(link.startswith("#") for link in links)


def test_ids_of_one_figure_are_not_another_s(page: Page) -> None:
    found = re.findall(r'\bid="([^"]+)"', html_of(page))
    assert len(found) == len(set(found))


def test_colours_of_figures_follow_the_page(page: Page) -> None:
    for name, svg in pictures(page).items():
        assert "var(--ink)" in svg or "var(--muted)" in svg, name
        assert not [colour for colour in VARIABLES if colour in svg], name


def test_figures_are_files_beside_the_page(page: Page, tmp_path: Path) -> None:
    path = write_page(page, tmp_path / "report")
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert {file.name for file in path.parent.iterdir()} == {"report.html", *(f"{name}.png" for name in EXPECTED)}
    assert (path.parent / "methods.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_results_give_the_same_page(folder: Path, page: Page) -> None:
    assert html_of(experiment_page(folder)) == html_of(page)


def test_what_others_wrote_is_escaped() -> None:
    evil = "<script>alert(1)</script>"
    section = Section(evil, evil, tables=(Table((evil,), (Row((evil,)),), evil, evil),), code=evil)
    assert evil not in html_of(Page(evil, evil, (), (evil,), (section,)))
    assert evil not in inline("<svg width='1pt'><g/></svg>", "a", evil)


def test_many_methods_are_told_apart_by_a_few_colours(tmp_path: Path) -> None:
    write_results(tmp_path / "many", MANY, seeds=(0,), draws=1, questions=60)
    study = study_of(read_results(tmp_path / "many"))
    assert len(study.main) in (4, 5)  # the comparison of the paper, and the method that validation chooses
    assert len(study.learned) == len(MANY) - 3
    assert len({study.look(name).colour for name in study.main}) == len(study.main)
    assert pictures(experiment_page(tmp_path / "many")).keys() == EXPECTED


def test_what_is_drawn_in_colour_can_be_chosen(folder: Path) -> None:
    assert study_of(read_results(folder), ["FedAvg paper"]).main == ("FedAvg paper",)
    with pytest.raises(InvalidArgument, match=r"no method 'FedAvg papers'; there are: .*FedAvg paper"):
        study_of(read_results(folder), ["FedAvg papers"])


@pytest.mark.parametrize(
    "methods",
    [
        (Method("uniform", "baseline", end=0.65),),
        (Method("FedAvg default"),),
        (Method("Each group alone", "local", end=0.7),),
        (Method("FedAvg default", loss="cross_entropy"), Method("uniform", "baseline", end=0.65)),
    ],
)
def test_a_report_makes_do_with_what_there_is(tmp_path: Path, methods: tuple[Method, ...]) -> None:
    write_results(tmp_path, methods, seeds=(0,), draws=1, questions=60)
    page = experiment_page(tmp_path)
    assert page.caveats or all(made.kind == "baseline" for made in methods)
    assert "<h1>" in html_of(page)


def test_headers_of_earlier_versions_are_understood(tmp_path: Path) -> None:
    write_results(tmp_path, SMALL, seeds=(0,), draws=1, questions=60)
    for path in tmp_path.iterdir():
        path.write_text(
            re.sub(r'"experiment": \{.*?\}\]\}, ', "", path.read_text()).replace('"method_kind"', '"was_kind"')
        )
    study = study_of(read_results(tmp_path))
    assert (study.roles.default, study.roles.paper) == ("FedAvg default", "FedAvg paper")
    assert study.roles.central_equal == "Centralized equal steps"
    assert set(study.baselines) == {"uniform", "own nearest answer", "mean of training groups"}


# Sentences


def test_findings_are_of_the_data(folder: Path) -> None:
    study = study_of(read_results(folder))
    text = " ".join(" ".join((found.text, *found.details)) for found in findings(study))
    assert text.startswith("The validation groups choose FedAvg default")
    assert re.search(r"FedAvg paper is 0\.0\d\d \(.*?\) above Centralized 100 steps", text)
    assert re.search(r"FedAvg paper is 0\.0\d\d \(.*?\) below Centralized equal steps", text)
    for axis in ("rounds", "gradient steps", "episodes", "bytes moved", "seconds"):
        assert re.search(rf"{axis}: in \d+%", text), axis
    assert "faster" not in text


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Estimate(0.02, 0.01, 0.03), "a is 0.020 (0.010 to 0.030) above b."),
        (Estimate(-0.02, -0.03, -0.01), "a is 0.020 (0.010 to 0.030) below b."),
        (Estimate(0.02, -0.01, 0.05), "a and b cannot be told apart: the difference is +0.020 (-0.010 to +0.050)."),
        (Estimate(0.0001, 0.00005, 0.0002), "a and b are alike: they differ by less than 0.0005."),
    ],
)
def test_a_difference_is_told_as_it_is(found: Estimate, words: str) -> None:
    assert compared("a", "b", found) == words


def test_what_is_quicker_names_its_axis() -> None:
    assert quick(Reach(12, 11, 14, 5, 5), 60, "rounds") == "rounds: in 20% of them, 12 of 60 (seeds: 11 to 14)"
    assert quick(Reach(NOT_REACHED, 9, 9, 1, 3), 60, "rounds") == "rounds: not reached (1 of 3 seeds reach it)"


@pytest.mark.parametrize(
    ("reach", "words"),
    [
        (None, "no such cost"),
        (Reach(NOT_REACHED, NOT_REACHED, NOT_REACHED, 0, 5), "not reached"),
        (Reach(NOT_REACHED, 10, 11, 2, 5), "not reached\nby most: 2 of 5 seeds do"),
        (Reach(12, 10, 14, 4, 5), "12\n4 of 5 seeds reach it"),
        (Reach(12, 10, 14, 5, 5), "12\n10 to 14"),
        (Reach(12, 12, 12, 1, 1), "12"),
        (Reach(0, 0, 0, 2, 2), "at its start"),
    ],
)
def test_a_threshold_that_is_not_reached_says_so(reach: Reach | None, words: str) -> None:
    assert reach_text(reach, "rounds") == words


def test_costs_are_in_units_a_person_reads() -> None:
    assert [amount("moved_bytes", value) for value in (12, 1200, 3.4e6, 2.5e9)] == [
        "12 B",
        "1.2 kB",
        "3.4 MB",
        "2.5 GB",
    ]
    assert [amount("seconds", value) for value in (12.4, 3600)] == ["12 s", "60 min"]
    assert [amount("rounds", value) for value in (4.25, 1234.0)] == ["4.2", "1,234"]
    assert amount("rounds", 4.0) == "4"
