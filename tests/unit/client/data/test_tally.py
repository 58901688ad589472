"""One respondent adds at most 1 to the counts of one question, whatever the rows say; and the counts reach the private file."""

import json
from pathlib import Path
from typing import Any

import pytest

from pluralllm.client.data.counted_question import CountedQuestion, is_countable
from pluralllm.client.data.importers import import_globalopinionqa, import_opinionqa
from pluralllm.client.data.preferences.imports import import_preferences
from pluralllm.client.data.private_data import check_file, read_counted, read_group, write_group
from pluralllm.client.data.responses import Reading, import_responses
from pluralllm.client.data.tally import Answer, Weights, tally
from pluralllm.common.errors.tree import InvalidData
from pluralllm.common.words.questions import Question

UNWEIGHTED = Weights(exist=False)


def test_several_answers_of_one_respondent_share_the_one_that_a_respondent_adds() -> None:
    answers = [
        Answer("a", 1, "ann"),
        Answer("b", 1, "ann"),
        Answer("a", 1, "bob"),
        Answer("c", 1, "cem"),
        Answer("c", 1, "cem"),
    ]
    question = tally("Which?", ["a", "b", "c"], answers, UNWEIGHTED)
    assert question.counts == (1.5, 0.5, 1.0)
    assert question.respondents == 3
    assert question.shares == (0.5, 0.5 / 3, 1 / 3)


def test_answers_without_a_respondent_are_of_different_people() -> None:
    question = tally("Which?", ["a", "b"], [Answer("a"), Answer("a"), Answer("b")], UNWEIGHTED)
    assert (question.counts, question.respondents) == ((2.0, 1.0), 3)


def test_a_weight_without_a_bound_leaves_shares_and_no_counts() -> None:
    question = tally("Which?", ["a", "b"], [Answer("a", 3), Answer("b", 1)], Weights(exist=True))
    assert (question.counts, question.shares, question.respondents) == ((), (0.75, 0.25), 2)


def test_noise_can_be_added_to_counts_and_to_shares_of_a_number_of_respondents() -> None:
    options = ("a", "b")
    assert is_countable(CountedQuestion("Q?", options, (0.5, 0.5), counts=(1, 1)))
    assert is_countable(CountedQuestion("Q?", options, (0.5, 0.5), respondents=9))
    assert not is_countable(CountedQuestion("Q?", options, (0.5, 0.5)))
    assert not is_countable(Question("Q?", options, (0.5, 0.5)))


def test_heavier_weights_are_lowered_to_the_stated_one_and_counts_are_parts_of_it() -> None:
    question = tally(
        "Which?", ["a", "b"], [Answer("a", 9), Answer("b", 1), Answer("b", 0)], Weights(exist=True, largest=2)
    )
    assert question.counts == (1.0, 0.5)
    assert question.shares == (2 / 3, 1 / 3)
    assert question.respondents == 2
    assert tally("Which?", ["a", "b"], [Answer("a")], Weights(exist=False, largest=2)).counts == (1.0, 0.0)


def responses(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_questions_and_options_of_a_list_are_kept_in_its_order_also_without_an_answer(tmp_path: Path) -> None:
    path = responses(
        tmp_path,
        {"question": "Tea?", "answer": "Yes", "respondent": 0},
        {"question": "Tea?", "answer": "No", "respondent": 0},
        {"question": "Unlisted?", "answer": "a"},
        {"question": "Unlisted?", "answer": "b"},
    )
    (tmp_path / "options.json").write_text('{"Rice?": ["Yes", "No"], "Tea?": ["No", "Maybe", "Yes"]}')
    imported = import_responses(path, None, tmp_path / "options.json", None, Reading(options_order="sorted"))
    assert [(q.text, q.options, q.counts, q.respondents) for q in imported] == [
        ("Rice?", ("Yes", "No"), (0, 0), 0),
        ("Tea?", ("No", "Maybe", "Yes"), (0.5, 0, 0.5), 1),
        ("Unlisted?", ("a", "b"), (1, 1), 2),
    ]
    write_group(tmp_path / "group.jsonl", imported)
    assert [q.text for q in read_group(tmp_path / "group.jsonl")] == ["Tea?", "Unlisted?"]
    assert [q.text for q in read_counted(tmp_path / "group.jsonl")] == ["Rice?", "Tea?", "Unlisted?"]
    checked = check_file(tmp_path / "group.jsonl")
    assert (len(checked.questions), checked.unanswered, checked.lines) == (2, 1, 3)


def test_weighted_rows_have_counts_only_with_a_largest_weight(tmp_path: Path) -> None:
    path = responses(
        tmp_path, {"question": "Q?", "answer": "a", "weight": 4}, {"question": "Q?", "answer": "b", "weight": 1}
    )
    (plain,), (bound,) = (
        import_responses(path, None, None, bound, Reading(options_order="sorted")) for bound in (None, 2.0)
    )
    assert (plain.counts, plain.shares) == ((), (0.8, 0.2))
    assert bound.counts == (1.0, 0.5)


def test_a_question_that_a_later_wave_asked_of_somebody_has_the_answers_of_the_later_wave(tmp_path: Path) -> None:
    for wave, answers in (("W1", "\n"), ("W2", "Yes,X\nNo,X\nYes,X\nOther,X\n")):
        (tmp_path / wave).mkdir()
        (tmp_path / wave / "info.csv").write_text("key,question,references\nQ1,Safe?,\"['Yes', 'No']\"\n")
        (tmp_path / wave / "responses.csv").write_text(f"Q1,SEX\n,X\n{answers}")
    (question,) = import_opinionqa(tmp_path, "SEX", "X")
    assert (question.counts, question.respondents) == ((2.0, 1.0), 3)
    (tmp_path / "W2" / "responses.csv").write_text("Q1,SEX\n,X\n")
    (unanswered,) = import_opinionqa(tmp_path, "SEX", "X")
    assert (unanswered.counts, unanswered.respondents) == ((0.0, 0.0), 0)


def test_weights_of_opinionqa_are_lowered_to_the_largest_that_is_stated(tmp_path: Path) -> None:
    (tmp_path / "info.csv").write_text("key,question,references\nk,Q?,\"['a', 'b']\"\n")
    (tmp_path / "responses.csv").write_text("POLPARTY,k,WEIGHT_1\nX,a,6\nX,b,1\n")
    assert import_opinionqa(tmp_path, "POLPARTY", "X")[0].counts == ()
    assert import_opinionqa(tmp_path, "POLPARTY", "X", max_weight=4.0)[0].counts == (1.0, 0.25)


def test_a_survey_without_numbers_of_respondents_gets_the_one_that_the_partner_states(tmp_path: Path) -> None:
    (tmp_path / "g.csv").write_text(
        "question,selections,options,source\n"
        "Q?,\"defaultdict(<class 'list'>, {'Norway': [0.2, 0.8]})\",\"['Yes', 'No']\",GAS\n"
    )
    (question,) = import_globalopinionqa(tmp_path / "g.csv", "Norway", respondents=1000)
    write_group(tmp_path / "a.jsonl", [question])
    (again,) = read_counted(tmp_path / "a.jsonl")
    assert (again.counts, again.respondents, again.shares) == ((), 1000, (0.2, 0.8))


@pytest.mark.parametrize(
    ("row", "counts"),
    [
        ({"prompt": "p", "chosen": "x", "rejected": "y"}, {"x": 1, "y": 0}),
        ({"prompt": "p", "options": ["x", "y"], "votes": [2, 1]}, {"x": 2, "y": 1}),
        ({"prompt": "p", "options": ["x", "y"], "votes": [0.5, 1]}, None),
        ({"prompt": "p", "options": ["x", "y"], "shares": [2, 1]}, None),
        ({"prompt": "p", "chosen": "x", "rejected": "y", "weight": 2}, None),
    ],
)
def test_votes_are_counts_and_scores_and_weights_are_not(
    tmp_path: Path, row: dict[str, Any], counts: dict[str, int] | None
) -> None:
    (question,) = import_preferences(responses(tmp_path, row), None)
    expected = () if counts is None else tuple(counts[option] for option in question.options)
    assert question.counts == expected
    assert question.respondents == (None if counts is None else sum(counts.values()))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_counts_and_respondents_survive_in_the_private_file(tmp_path: Path, suffix: str) -> None:
    question = tally("Which?", ["a", "b"], [Answer("a", 1, "ann"), Answer("b", 1, "ann"), Answer("a")], UNWEIGHTED)
    path = tmp_path / f"group{suffix}"
    write_group(path, [question, Question("Old?", ("a", "b"), (0.25, 0.75))])
    counted, old = read_counted(path)
    assert counted == question
    assert (old.counts, old.respondents, old.shares) == ((), None, (0.25, 0.75))
    assert [type(q) for q in read_group(path)] == [Question, Question]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"counts": [2, 2], "respondents": 3}, "counts sum to 4 for 3 respondents; the answers of one respondent"),
        ({"counts": [0, 0], "respondents": 3}, "counts are all 0; leave the question out"),
        ({"shares": [0.5, 0.5], "respondents": 0}, "shares of 0 respondents"),
        ({"shares": [0.5, 0.5], "respondents": -1}, "respondents: Input should be greater than or equal to 0"),
    ],
)
def test_a_number_of_respondents_that_cannot_be_is_named(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    path = responses(tmp_path, {"question": "Q?", "options": ["a", "b"], **change})
    with pytest.raises(InvalidData, match=problem):
        read_counted(path)
