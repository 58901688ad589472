"""An import keeps the codebook of the private file beside it, if it knows what was asked; a release reads it there."""

import csv
import json
from pathlib import Path

import pytest

from pluralllm.client.data.codebook import codebook_beside, codebook_of, keep_codebook, kept_codebook, read_codebook
from pluralllm.client.data.counted_question import CountedQuestion
from pluralllm.client.data.private_data import read_counted
from pluralllm.client.data.sample_survey import RESPONDENTS, sample_groups, with_counts
from pluralllm.client.data_commands import sample
from pluralllm.client.preference_command import preferences
from pluralllm.client.survey_commands import globalopinionqa, opinionqa, responses
from pluralllm.common.errors.tree import InvalidData
from pluralllm.common.words.questions import Question

LISTED = {"Tea?": ["Yes", "No"], "Rice?": ["No", "Maybe", "Yes"]}
ROWS = [
    ["ann", "Tea?", "Yes", ""],
    ["ann", "Tea?", "No", ""],
    ["ann", "Rice?", "No", ""],
    ["bob", "Tea?", "Yes", ""],
    ["", "Rice?", "Yes", ""],
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    write_rows(tmp_path / "rows.csv", ROWS)
    (tmp_path / "options.json").write_text(json.dumps(LISTED))
    return tmp_path / "rows.csv"


def write_rows(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["respondent", "question", "answer", "weight"], *rows])


def asked(data: Path) -> list[tuple[str, tuple[str, ...]]]:
    return [(question.text, question.options) for question in codebook_of(data, None)]


def test_the_import_with_options_keeps_them_and_the_most_questions_of_one_respondent(
    rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = rows.with_name("town.jsonl")
    responses(rows, out, None, rows.with_name("options.json"))
    assert asked(out) == [(text, tuple(options)) for text, options in LISTED.items()]
    assert kept_codebook(out).most_answered == 2
    assert codebook_beside(out).stat().st_mode & 0o077 == 0
    said = capsys.readouterr().out
    assert "One respondent has answered 2 questions" in said
    assert "a release with epsilon 4 adds noise of 0.899 to each share" in said


def test_the_counts_of_others_do_not_depend_on_whether_one_respondent_has_a_weight(rows: Path) -> None:
    out = rows.with_name("town.jsonl")
    counts = []
    for one in ([], [["eve", "Tea?", "No", "2"]]):
        write_rows(rows, [*ROWS, *one])
        responses(rows, out, None, rows.with_name("options.json"), max_weight=2.0)
        counts.append([question.counts for question in read_counted(out)])
    assert counts == [[(0.75, 0.25), (0.5, 0.0, 0.5)], [(0.75, 1.25), (0.5, 0.0, 0.5)]]


def test_an_import_that_does_not_know_what_was_asked_leaves_no_codebook_of_an_earlier_one(rows: Path) -> None:
    out = rows.with_name("town.jsonl")
    responses(rows, out, None, rows.with_name("options.json"))
    responses(rows, out, None, None, options_order="sorted")
    assert kept_codebook(out).asked is None
    assert kept_codebook(out).most_answered == 2
    with pytest.raises(
        InvalidData,
        match=r"no list of the questions .*town.jsonl.codebook.*Coffee.*import the answers again with --opt",
    ):
        codebook_of(out, None)
    write_rows(rows, [["", *row[1:]] for row in ROWS])
    responses(rows, out, None, None, options_order="sorted")
    assert not codebook_beside(out).exists()


def test_an_import_of_counts_says_at_once_that_a_release_needs_the_list_of_what_was_asked(
    rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = rows.with_name("town.jsonl")
    responses(rows, out, None, None, options_order="sorted")
    assert "the list of all questions that were asked is needed: import again with --options" in capsys.readouterr().out
    responses(rows, out, None, rows.with_name("options.json"))
    assert "is needed" not in capsys.readouterr().out
    write_rows(rows, [[*row[:3], "2.0"] for row in ROWS])
    responses(rows, out, None, None, options_order="sorted")
    assert "is needed" not in capsys.readouterr().out, "no list helps weighted answers without --max-weight"


def test_the_codebook_does_not_depend_on_what_was_answered(rows: Path) -> None:
    out = rows.with_name("town.jsonl")
    write_rows(rows, [[*row[:3], "2.0"] for row in ROWS if row[1] == "Tea?"])
    responses(rows, out, None, rows.with_name("options.json"))
    assert len(read_counted(out)) == 1, "shares of weighted answers leave the unanswered question out"
    assert len(asked(out)) == 2


def test_a_country_has_a_codebook_if_the_partner_states_its_respondents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "opinions.csv", tmp_path / "japan.jsonl"
    with source.open("w", newline="") as file:
        row = ["Tea?", "defaultdict(<class 'list'>, {'Japan': [0.25, 0.75]})", "['Yes', 'No']"]
        csv.writer(file).writerows([["question", "selections", "options"], row])
    globalopinionqa(source, "Japan", out, 1000)
    assert asked(out) == [("Tea?", ("Yes", "No"))]
    printed = capsys.readouterr().out
    assert "1000 respondents are an assumption" in printed
    assert "rounded to hundredths" in printed
    globalopinionqa(source, "Japan", out, None)
    assert not codebook_beside(out).exists()


def test_the_codebook_of_opinionqa_has_the_questions_that_nobody_answered(tmp_path: Path) -> None:
    info = "key,question,references\nQ1,Safe?,\"['Yes', 'No']\"\nQ2,Well?,\"['Yes', 'No']\"\n"
    (tmp_path / "info.csv").write_text(info)
    (tmp_path / "responses.csv").write_text("Q1,Q2,SEX\nYes,,X\nNo,,X\n")
    opinionqa(tmp_path, "SEX", "X", tmp_path / "x.jsonl")
    assert [text for text, _ in asked(tmp_path / "x.jsonl")] == ["Safe?", "Well?"]
    (tmp_path / "responses.csv").write_text("Q1,Q2,SEX,WEIGHT\nYes,,X,2.5\nNo,,X,1\n")
    opinionqa(tmp_path, "SEX", "X", tmp_path / "x.jsonl")
    assert not codebook_beside(tmp_path / "x.jsonl").exists(), "of weighted shares only answered questions are kept"


def test_votes_have_no_codebook_because_their_rows_are_those_that_somebody_voted_on(tmp_path: Path) -> None:
    (tmp_path / "votes.jsonl").write_text('{"prompt": "p", "candidates": ["a", "b"], "votes": [3, 1]}\n')
    preferences(tmp_path / "votes.jsonl", tmp_path / "x.jsonl")
    assert not codebook_beside(tmp_path / "x.jsonl").exists()


def test_the_invented_survey_has_counts_of_a_thousand_people_and_its_codebook(tmp_path: Path) -> None:
    sample(tmp_path, groups=2, questions=5, seed=0)
    data = tmp_path / "northmark.jsonl"
    counted = read_counted(data)
    assert asked(data) == [(question.text, question.options) for question in counted]
    assert {question.respondents for question in counted} == {RESPONDENTS}
    assert {sum(question.counts) for question in counted} == {RESPONDENTS}
    exact = next(questions for name, questions in sample_groups(2, 5, 0).items() if name == "Northmark")
    for question, other in zip(counted, exact, strict=True):
        assert all(abs(count - 1000 * share) < 1 for count, share in zip(question.counts, other.shares, strict=True))


def test_whole_counts_always_sum_to_the_people() -> None:
    third = Question("Q?", ("a", "b", "c"), (1 / 3, 1 / 3, 1 / 3))
    assert with_counts(third, 1000).counts == (334, 333, 333)
    assert with_counts(Question("Q?", ("a", "b"), (0.6004, 0.3996)), 1000).counts == (600, 400)
    assert with_counts(third, 1000).shares == (0.334, 0.333, 0.333)


def test_a_list_may_have_one_text_with_two_lists_of_options(tmp_path: Path) -> None:
    path = tmp_path / "options.json"
    rows = [{"question": "Tea?", "options": ["Yes", "No"]}, {"question": "Tea?", "options": ["Green", "Black"]}]
    path.write_text(json.dumps(rows))
    assert [question.options for question in read_codebook(path)] == [("Yes", "No"), ("Green", "Black")]
    keep_codebook(tmp_path / "town.jsonl", read_codebook(path))
    assert codebook_of(tmp_path / "town.jsonl", None) == read_codebook(path)
    assert codebook_of(tmp_path / "other.jsonl", path) == read_codebook(path)


@pytest.mark.parametrize(
    "text", ["[1]", '[{"question": "Q?"}]', '[{"question": "Q?", "options": "ab"}]', "3", '"a"', "{"]
)
def test_a_list_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "options.json").write_text(text)
    with pytest.raises(InvalidData):
        read_codebook(tmp_path / "options.json")


def test_a_codebook_beside_a_link_is_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    real, link = tmp_path / "far" / "town.jsonl", tmp_path / "link.jsonl"
    real.write_text("")
    link.symlink_to(real)
    keep_codebook(link, [CountedQuestion("Tea?", ("Yes", "No"), (0.5, 0.5))])
    assert asked(real) == [("Tea?", ("Yes", "No"))]
