"""The pure parts of an experiment's report: labels that do not overlap, honest sentences, texts that are escaped."""

import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.text import Text
from support.synthetic_results import SMALL, Method, write_results

from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.experiment.convergence import NOT_REACHED, Curve, Reach
from pluralllm.experiment.report.curves import apart, convergence
from pluralllm.experiment.report.findings import amount, compared, findings, quick
from pluralllm.experiment.report.overview import overview
from pluralllm.experiment.report.page import Page, Row, Section, Table, html_of
from pluralllm.experiment.report.study import study_of
from pluralllm.experiment.report.tables import reach_text
from pluralllm.experiment.report.theme import inline, spread_out, two_lines
from pluralllm.experiment.results import read_results
from pluralllm.experiment.summary import Estimate

pytestmark = pytest.mark.seconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("small"), SMALL, seeds=(0, 1, 2), draws=2, questions=80)


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


def test_what_others_wrote_is_escaped() -> None:
    evil = "<script>alert(1)</script>"
    section = Section(evil, evil, tables=(Table((evil,), (Row((evil,)),), evil, evil),), code=evil)
    assert evil not in html_of(Page(evil, evil, (), (evil,), (section,)))
    assert evil not in inline("<svg width='1pt'><g/></svg>", "a", evil)


def test_what_nobody_sees_in_a_text_of_others_is_shown_as_an_escape() -> None:
    page = html_of(Page("gnp.\u202eexe", "a\x1b[2J", (), (), ()))
    assert "gnp.\\u202eexe" in page
    assert not {"\u202e", "\x1b"} & set(page)


def test_what_is_drawn_in_colour_can_be_chosen(folder: Path) -> None:
    assert study_of(read_results(folder), ["FedAvg paper"]).main == ("FedAvg paper",)
    with pytest.raises(InvalidArgument, match=r"no method 'FedAvg papers'; there are: .*FedAvg paper"):
        study_of(read_results(folder), ["FedAvg papers"])


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


# Curves


def costs(**ends: float) -> dict[str, Curve]:
    """Returns curves that end at these costs, by the method's name."""
    flat = np.zeros(2)
    return {name: Curve(np.array([0.0, end]), flat, flat, flat, 1) for name, end in ends.items()}


def test_an_axis_that_draws_the_same_curves_again_is_a_sentence_about_its_scale() -> None:
    shares = {"gradient_steps": costs(a=600, b=1200), "rounds": costs(a=100, b=200), "seconds": costs(a=7, b=9)}
    episodes, moved = costs(a=28_800, b=57_600), costs(a=4.48e9, b=8.96e9)
    shown, scales = apart(shares | {"episodes": episodes, "moved_bytes": moved})
    assert shown == ("gradient_steps", "seconds")
    assert scales == (
        "one round is 6 gradient steps",
        "one gradient step is 48 episodes",
        "one gradient step is 7.47 MB moved",
    )
    apart_ones = {"episodes": costs(a=28_800, b=60_000), "moved_bytes": costs(a=4.48e9)}
    assert apart(shares | apart_ones)[0] == ("gradient_steps", "episodes", "moved_bytes", "seconds"), "other curves"
    central = {**shares, "gradient_steps": costs(a=600, b=1200, c=360), "episodes": episodes, "moved_bytes": moved}
    assert apart(central) == (
        ("gradient_steps", "rounds", "seconds"),
        ("one round is 288 episodes", "one round is 44.8 MB moved"),
    )


def test_the_figure_of_costs_has_one_panel_for_each_axis_apart_and_says_the_other_scales(folder: Path) -> None:
    figure = convergence(study_of(read_results(folder)))
    assert figure is not None
    assert "against gradient steps, one after the other; rounds; seconds of training. On" in figure.alt
    assert "are not drawn again: " in figure.caption
    assert "one round is 44.8 MB moved." in figure.caption


def test_a_long_name_of_a_row_is_whole_on_two_lines_and_only_a_longer_one_is_cut(tmp_path: Path) -> None:
    long = "FedAvg with an adaptive server optimizer and long local training"
    assert two_lines("FedAvg") == "FedAvg"
    assert two_lines(long) == "FedAvg with an adaptive server\noptimizer and long local training"
    assert two_lines(f"{long} {long}") == "FedAvg with an adaptive server\noptimizer and long local training…"
    write_results(tmp_path, [*SMALL, Method(long)], seeds=(0,), draws=1, questions=60)
    drawn = list[str]()
    study = study_of(read_results(tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Axes, "set_yticks", lambda _axes, _at, labels: drawn.extend(labels))
        patch.setattr(Axes, "get_yticklabels", lambda _axes: [Text()] * len(drawn))
        overview(study)
    assert two_lines(long) in drawn
