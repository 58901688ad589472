"""Value labels of SPSS and Stata files are the answers, and their codes give the order; --codes takes the codes instead."""

from pathlib import Path
from typing import Any

import pyreadstat
import pytest
from typer.testing import CliRunner

from pluralllm.client.data.private_data import read_counted
from pluralllm.client.data.responses import Reading, count_responses
from pluralllm.client.data.survey_labels import Labels
from pluralllm.client.data.tables import read_table, table_rows
from pluralllm.client.data_commands import app
from pluralllm.common.errors.tree import InvalidData

pd = pytest.importorskip("pandas")

Labelled = dict[int | float, str]  # labels by code

TRUST: Labelled = {3: "None", 1: "A lot", 2: "Some"}  # not in the order of the codes
LANDS: Labelled = {1: "north", 2: "south"}


def survey(folder: Path, answers: list[Any], labels: Labelled | None = None, ending: str = "sav", **more: Any) -> Path:
    """Writes a file of respondents with one question, v1; every second respondent lives in the south."""
    lands = [1.0 + number % 2 for number in range(len(answers))]
    frame = pd.DataFrame({"v1": answers, "land": lands, "wgt": [1.0] * len(answers)})
    path = folder / f"survey.{ending}"
    write = pyreadstat.write_sav if ending == "sav" else pyreadstat.write_dta
    labelled: dict[str, Labelled] = {
        "v1": TRUST if labels is None else labels,
        "land": LANDS,
        "wgt": {1: "not weighted"},
    }
    write(frame, str(path), variable_value_labels=labelled, column_labels={"v1": "Trust in  courts?"}, **more)
    return path


def counts(path: Path, group: str | None = None, **stated: Any) -> dict[str, dict[str, float]]:
    named = {"wide": True, "group": "land", "weight": "wgt", "labels": Labels(of_question={"v1": {}}), **stated}
    found = count_responses(path, group, None, 1.0, Reading(**named)).questions
    return {one.text: dict(zip(one.options, one.counts or one.shares, strict=True)) for one in found}


@pytest.mark.parametrize("ending", ["sav", "dta"])
def test_labels_are_options_in_the_order_of_their_codes_also_those_that_nobody_of_the_group_chose(
    tmp_path: Path, ending: str
) -> None:
    path = survey(tmp_path, [1.0, 2.0, 1.0, 2.0], ending=ending)
    imported = counts(path, "north")
    assert imported == {"Trust in courts?": {"A lot": 2, "Some": 0, "None": 0}}
    assert list(imported["Trust in courts?"]) == ["A lot", "Some", "None"]


def test_codes_are_options_where_they_are_asked_for(tmp_path: Path) -> None:
    path = survey(tmp_path, [1.0, 2.0, 1.0, 3.0])
    assert counts(path, codes=True, options_order="sorted") == {"Trust in courts?": {"1": 2, "2": 1, "3": 1}}
    words = ["--wide", "--options", str(tmp_path / "o.json"), "--weight", "wgt", "--max-weight", "1", "--codes"]
    (tmp_path / "o.json").write_text('{"Trust in courts?": ["1", "2", "3"]}')  # the title of the column names it
    done = CliRunner().invoke(app, ["import", "responses", str(path), *words, "--out", str(tmp_path / "g.jsonl")])
    assert done.exit_code == 0, done.output
    assert read_counted(tmp_path / "g.jsonl")[0].options == ("1", "2", "3")


@pytest.mark.parametrize("stated", ["-9", "no answer"])
def test_a_missing_answer_is_named_by_its_code_or_its_label(tmp_path: Path, stated: str) -> None:
    path = survey(tmp_path, [1.0, 2.0, -9.0, 1.0], {**TRUST, -9: "No answer"})
    with pytest.raises(InvalidData, match="look like codes for missing answers; say --missing -9,No answer"):
        counts(path, "south")  # nobody in the south has this code
    assert counts(path, missing=frozenset({stated})) == {"Trust in courts?": {"A lot": 2, "Some": 1, "None": 0}}


def test_a_missing_answer_needs_no_label(tmp_path: Path) -> None:
    path = survey(tmp_path, [1.0, 2.0, -9.0, 1.0])
    assert counts(path, missing=frozenset({"-9"})) == {"Trust in courts?": {"A lot": 2, "Some": 1, "None": 0}}


def test_codes_that_the_file_declares_as_missing_are_neither_answers_nor_options(tmp_path: Path) -> None:
    ranges = {"v1": [{"lo": -9, "hi": -7}, 9]}
    path = survey(tmp_path, [1.0, -8.0, 9.0, 2.0], {**TRUST, 9: "Refused", -8: "Unknown"}, missing_ranges=ranges)
    assert counts(path) == {"Trust in courts?": {"A lot": 1, "Some": 1, "None": 0}}
    assert [row["v1"] for _, row in table_rows(path)] == ["A lot", None, None, "Some"]


def test_the_missing_values_of_stata_are_none_and_have_no_label(tmp_path: Path) -> None:
    frame = pd.DataFrame({"v1": pd.Series([1, 2, "a"], dtype=object)})
    labels: Any = {"v1": {1: "Yes", 2: "No", "a": "Refused"}}
    pyreadstat.write_dta(
        frame, str(tmp_path / "a.dta"), variable_value_labels=labels, missing_user_values={"v1": ["a"]}
    )
    table = read_table(tmp_path / "a.dta")
    assert [row["v1"] for _, row in table.rows] == [1, 2, None]
    assert table.labels == {"v1": {1: "Yes", 2: "No"}}


def test_labels_of_the_ends_of_a_scale_are_not_all_options(tmp_path: Path) -> None:
    path = survey(tmp_path, [0.0, 4.0, 2.0, 3.0], {0: "Never", 4: "Always"})
    with pytest.raises(InvalidData, match="nothing says the order of the options"):
        counts(path, "north")
    assert counts(path, options_order="sorted") == {"Trust in courts?": {"2": 1, "3": 1, "Always": 1, "Never": 1}}


def test_labels_that_the_partner_gives_replace_those_of_the_file(tmp_path: Path) -> None:
    path = survey(tmp_path, [1.0, 2.0], {1: "Always"})  # and so do not miss the labels that the file lacks
    given = Labels(of_question={"v1": {"1": "Yes", "2": "No"}}, texts={"v1": "Courts?"})
    assert counts(path, labels=given) == {"Courts?": {"Yes": 1, "No": 1}}


def test_a_long_file_has_one_list_of_labels_for_all_its_questions(tmp_path: Path) -> None:
    frame = pd.DataFrame({"item": [1.0, 1.0, 2.0], "answer": [2.0, 1.0, 1.0]})
    labels: dict[str, Labelled] = {"item": {1: "Tea?", 2: "Milk?"}, "answer": {1: "Yes", 2: "No"}}
    pyreadstat.write_sav(frame, str(tmp_path / "a.sav"), variable_value_labels=labels)
    (tea, milk) = count_responses(tmp_path / "a.sav", None, None, None, Reading("item")).questions
    assert (tea.text, tea.options, tea.counts) == ("Tea?", ("Yes", "No"), (1, 1))
    assert (milk.text, milk.options, milk.counts) == ("Milk?", ("Yes", "No"), (1, 0))
