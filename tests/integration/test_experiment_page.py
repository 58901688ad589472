"""An experiment's page as it is drawn: every figure, a text for each, nothing from anywhere else, the same page each time."""

import re
from pathlib import Path

import pytest
from support.synthetic_results import MANY, SMALL, Method, write_results

from pluralllm.experiment.report.experiment import experiment_page
from pluralllm.experiment.report.page import Page, html_of, write_page
from pluralllm.experiment.report.study import study_of
from pluralllm.experiment.report.theme import VARIABLES
from pluralllm.experiment.results import read_results

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


def test_many_methods_are_told_apart_by_a_few_colours(tmp_path: Path) -> None:
    write_results(tmp_path / "many", MANY, seeds=(0,), draws=1, questions=60)
    study = study_of(read_results(tmp_path / "many"))
    assert len(study.main) in (4, 5)  # the comparison of the paper, and the method that validation chooses
    assert len(study.learned) == len(MANY) - 3
    assert len({study.look(name).colour for name in study.main}) == len(study.main)
    assert pictures(experiment_page(tmp_path / "many")).keys() == EXPECTED


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
