"""Scores by number of options: classes and their bounds, groups and seeds together, results without the numbers."""

from pathlib import Path

import numpy as np
from support.synthetic_results import SMALL, write_results

from pluralllm.experiment.by_options import ClassScore, by_options, options_of
from pluralllm.experiment.details import details_of
from pluralllm.experiment.report.study import study_of
from pluralllm.experiment.report.tables import options_table
from pluralllm.experiment.results import Result, Scores, read_results
from pluralllm.experiment.summary import Selection

ASKED = {1: 2, 2: 5, 3: 6, 4: 8, 5: 9, 6: 40}  # options by question


def made(group: str, questions: list[int], distances: list[float], seed: int = 0, kind: str = "a") -> Result:
    count = len(questions)
    empty = np.full(count, np.nan)
    columns = np.zeros(count, int), np.array(questions), np.full(count, kind), np.array(distances), empty, empty
    return Result({"method": "m", "seed": seed}, (), (Scores(group, "test", 20, *columns),), (), options=ASKED)


def plain(found: dict[str, ClassScore]) -> dict[str, tuple[float, int]]:
    return {name: (round(score.alignment, 9), score.questions) for name, score in found.items()}


def test_a_class_has_the_mean_over_its_questions_in_all_groups_and_seeds() -> None:
    runs = [made("g", [1, 2, 3, 4], [0.1, 0.2, 0.3, 0.5]), made("h", [3, 5, 6], [0.1, 0.6, 0.2], seed=1)]
    found = by_options(runs, Selection(), options_of(runs))
    assert list(found) == ["2", "5", "6 to 8", "9 and more"]
    assert plain(found) == {"2": (0.9, 1), "5": (0.8, 1), "6 to 8": (0.7, 3), "9 and more": (0.6, 2)}


def test_only_the_selected_questions_count() -> None:
    runs = [made("g", [1], [0.1]), made("h", [1], [0.5], kind="w")]
    assert plain(by_options(runs, Selection(), ASKED)) == {"2": (0.9, 1)}


def test_a_question_whose_number_of_options_is_unknown_is_in_no_class() -> None:
    assert plain(by_options([made("g", [1, 7], [0.1, 0.9])], Selection(), ASKED)) == {"2": (0.9, 1)}
    assert by_options([made("g", [7], [0.9])], Selection(), ASKED) == {}


def test_results_of_an_earlier_release_have_a_calibration_and_no_classes(tmp_path: Path) -> None:
    write_results(tmp_path, SMALL, seeds=(0,), draws=1, questions=60)
    with_options = details_of(read_results(tmp_path), Selection())["FedAvg default"]
    assert set(with_options.by_options) == {"2", "3", "4", "5", "6 to 8", "9 and more"}
    table = options_table(study_of(read_results(tmp_path)))
    assert table is not None
    assert table.columns[:2] == ("method", "2 options")
    for path in tmp_path.iterdir():
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if '"kind": "options"' not in line))
    without = details_of(read_results(tmp_path), Selection())
    assert 0.5 < (with_options.calibration or 0) < 2
    assert without["FedAvg default"].plain() == {"by_options": {}, "calibration": with_options.calibration}
    assert without["uniform"].calibration is None
    assert options_table(study_of(read_results(tmp_path))) is None
