"""Answers of respondents are imported by the meaning that the partner states; what may have two meanings is refused."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pluralllm.client.data.codebook import codebook_of, kept_codebook
from pluralllm.client.data.import_report import ImportReport
from pluralllm.client.data.importers import import_globalopinionqa
from pluralllm.client.data.private_data import check_file, read_counted
from pluralllm.client.data.responses import Reading, count_responses
from pluralllm.client.data.survey_labels import Labels, read_labels
from pluralllm.client.data.survey_texts import missing_codes, text_of, weight_names, weight_of
from pluralllm.client.data_commands import app
from pluralllm.common.errors.tree import InvalidArgument, InvalidData
from pluralllm.common.words.questions import HoldOut

EXTENDING = Path(__file__).parents[4] / "docs" / "extending.md"
YES_NO = ["Yes", "No"]


def table(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SORTED = Reading(options_order="sorted")


def answers(folder: Path, *given: Any, **more: Any) -> Path:
    return table(folder, *({"question": "Q?", "answer": one, **more} for one in given))


def as_json(folder: Path, name: str, value: Any) -> Path:
    (folder / name).write_text(json.dumps(value))
    return folder / name


def counts(path: Path, options: Path | None = None, **stated: Any) -> dict[str, dict[str, float]]:
    found = count_responses(path, None, options, None, Reading(**{"options_order": "sorted", **stated})).questions
    return {one.text: dict(zip(one.options, one.counts or one.shares, strict=True)) for one in found}


def typed(*words: str | Path) -> str:
    done = CliRunner().invoke(app, ["import", "responses", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize(
    "name", ["Weight", "anweight", "pspwght", "W_WEIGHT", "wt", "WTSSALL", "perwt", "hh_wt2", "PWGT"]
)
def test_a_column_that_looks_like_a_weight_must_be_named_or_refused(tmp_path: Path, name: str) -> None:
    path = table(tmp_path, {"question": "Q?", "answer": "a", name: 9}, {"question": "Q?", "answer": "b", name: 1})
    with pytest.raises(InvalidData, match=f"column {name} may hold .* --weight COLUMN, or --no-weight"):
        count_responses(path, None, None)
    assert counts(path, weight=name) == {"Q?": {"a": 0.9, "b": 0.1}}
    assert counts(path, no_weight=True) == {"Q?": {"a": 1, "b": 1}}


def test_two_columns_of_weights_are_asked_about_also_if_one_has_the_usual_name(tmp_path: Path) -> None:
    path = answers(tmp_path, "a", "b", weight=1, dweight=2)
    with pytest.raises(InvalidData, match="column weight, dweight may hold"):
        count_responses(path, None, None)


def test_names_that_are_no_weights_are_left_alone() -> None:
    assert weight_names(["growth", "newtown", "question", "answer", "wave", "country"]) == []


def test_columns_are_named_and_those_not_used_are_told(tmp_path: Path) -> None:
    row = {"item": "Q?", "reply": "a", "land": "north", "who": "ann", "colour": "red"}
    path = table(tmp_path, row, {**row, "reply": "b"}, {**row, "reply": "b", "who": "bob"}, {**row, "land": "south"})
    imported = count_responses(
        path, "north", None, None, Reading("item", "reply", "land", "who", options_order="sorted")
    )
    assert [(q.counts, q.respondents) for q in imported.questions] == [((0.5, 1.5), 2)]
    assert imported.report.unused_columns == ["colour"]
    assert dict(imported.report.dropped) == {"of another group": 1}
    assert (imported.report.rows, imported.report.used) == (4, 3)
    assert "columns not used: colour" in imported.report.lines()


@pytest.mark.parametrize(
    "stated", [{"question": "item"}, {"group": "land"}, {"respondent": "who"}, {"weight": "w"}, {"wave": "year"}]
)
def test_a_named_column_that_is_absent_is_told_with_those_that_are_there(
    tmp_path: Path, stated: dict[str, str]
) -> None:
    (name,) = stated.values()
    with pytest.raises(InvalidData, match=f"no column .*{name}; it has: question, answer"):
        count_responses(answers(tmp_path, "a", "b"), None, None, None, Reading(**stated))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "codes"),
    [
        (("1", "2", "-1"), ["-1"]),
        (("1", "5", "98", "99"), ["98", "99"]),
        (("1", "2", "998"), ["998"]),
        (("1", "2", "3", "8"), ["8"]),
        (("Yes", "No", "NA"), ["NA"]),
        (("Yes", "No", "."), ["."]),
        (("Yes", "No", "Refused"), ["Refused"]),
        (("Yes", "No", "None", "Don't know"), []),
        (tuple(map(str, range(11))), []),
        (("1", "2", "3", "4", "5", "6", "7", "8"), []),
        (("1", "70", "98"), []),
        (("60", "70", "80", "90", "98"), []),
    ],
)
def test_codes_of_missing_answers_are_recognised(given: tuple[str, ...], codes: list[str]) -> None:
    assert missing_codes(given) == codes
    assert missing_codes(given, stated=given) == []


def test_codes_that_look_missing_are_refused_until_the_partner_says_what_they_are(tmp_path: Path) -> None:
    path = answers(tmp_path, 1, 2, 2, -1, 99)
    with pytest.raises(InvalidData, match=r"'-1', '99' look like .* --missing -1,99 .* --missing none"):
        count_responses(path, None, None)
    assert counts(path, missing=frozenset({"-1", "99"})) == {"Q?": {"1": 1, "2": 2}}
    assert len(counts(path, missing=frozenset())["Q?"]) == 4
    listed = as_json(tmp_path, "options.json", {"Q?": ["1", "2", "-1", "99"]})
    assert counts(path, listed) == {"Q?": {"1": 1, "2": 2, "-1": 1, "99": 1}}, "a listed option is stated"


def test_spaces_forms_of_letters_and_decimals_make_no_second_option(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        {"question": "Caf\u00e9  ok?", "answer": "S\u00ed"},
        {"question": " Cafe\u0301 ok?", "answer": "Si\u0301 "},
        {"question": "Caf\u00e9 ok?", "answer": "no  way"},
        *({"question": "N?", "answer": one} for one in (5.0, "5", 5, 0, "0.0", False)),
    )
    listed = as_json(tmp_path, "options.json", {"Cafe\u0301  ok?": ["no way", "Si\u0301"]})
    assert counts(path, listed) == {"Caf\u00e9 ok?": {"no way": 1, "S\u00ed": 2}, "N?": {"5": 3, "0": 2, "false": 1}}


def test_two_options_of_a_list_that_differ_in_spaces_only_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="is there twice"):
        counts(answers(tmp_path, "a"), as_json(tmp_path, "options.json", {"Q?": ["a b", "a  b"]}))


def test_labels_replace_codes_and_give_the_order_of_options(tmp_path: Path) -> None:
    path = answers(tmp_path, 2, 1, 2, "Agree", 98)
    labels = Labels(of_all={"1": "Agree", "2": "Disagree", "3": "Neither", "98": "Refused"})
    with pytest.raises(InvalidData, match="'Refused' look like"):
        counts(path, labels=labels)
    expected = {"Q?": {"Agree": 2, "Disagree": 2, "Neither": 0}}
    assert counts(path, labels=labels, missing=frozenset({"98"})) == expected
    assert counts(path, labels=labels, missing=frozenset({"refused"})) == expected
    with pytest.raises(InvalidData, match="line 6: answer '7' is not among the options"):
        counts(answers(tmp_path, 1, 1, 1, 1, 1, 7), labels=labels, missing=frozenset({"98"}))


def test_a_question_may_have_labels_of_its_own(tmp_path: Path) -> None:
    labels = read_labels(as_json(tmp_path, "labels.json", {"Q?": {"1": "Yes", "2": "No"}}))
    assert counts(answers(tmp_path, 1, 2, 2), labels=labels) == {"Q?": {"Yes": 1, "No": 2}}


def test_answers_of_weight_0_are_told_as_left_out(tmp_path: Path) -> None:
    rows = [{"question": "Q?", "answer": answer, "weight": weight} for answer, weight in (("a", 0), ("b", 1), ("c", 1))]
    imported = count_responses(table(tmp_path, *rows), None, None, None, SORTED)
    assert imported.questions[0].options == ("b", "c")
    assert dict(imported.report.dropped) == {"of respondents with weight 0": 1}


@pytest.mark.parametrize("value", [[], {}, 3, {"Q?": 3}, {"1": ["a"]}, {"Q?": {"1": 2}}, {"Q": {"labels": {"1": ""}}}])
def test_labels_of_another_form_are_refused_and_the_forms_are_shown(tmp_path: Path, value: Any) -> None:
    with pytest.raises(InvalidData, match="for all questions, or"):
        read_labels(as_json(tmp_path, "labels.json", value))


WIDE = "id,land,q1,q2,note\nann,north,1,2,x\nbob,north,2,,y\ncem,south,1,1,z\n"
LABELS = {
    "q1": {"question": "Tea?", "labels": {"1": "Yes", "2": "No"}},
    "q2": {"question": "Rice?", "labels": {"1": "Yes", "2": "No"}},
}


def test_a_wide_file_has_a_respondent_in_each_row(tmp_path: Path) -> None:
    (tmp_path / "wide.csv").write_text(WIDE)
    labels = as_json(tmp_path, "labels.json", LABELS)
    reading = Reading(wide=True, group="land", labels=read_labels(labels))
    imported = count_responses(tmp_path / "wide.csv", "north", None, None, reading)
    assert [(q.text, q.options, q.counts, q.respondents) for q in imported.questions] == [
        ("Tea?", ("Yes", "No"), (1, 1), 2),
        ("Rice?", ("Yes", "No"), (0, 1), 1),
    ]
    assert imported.most_answered == 2, "a row without a name is one respondent"
    assert (imported.report.unused_columns, imported.report.used) == (["id", "note"], 3)
    assert dict(imported.report.dropped) == {"of another group": 2, "missing or empty": 1}


def test_the_columns_of_a_wide_file_may_be_named_by_the_list_of_options(tmp_path: Path) -> None:
    (tmp_path / "wide.csv").write_text(WIDE)
    listed = as_json(tmp_path, "options.json", {"q2": ["1", "2"], "q9": ["1", "2"]})
    assert counts(tmp_path / "wide.csv", listed, wide=True) == {"q2": {"1": 1, "2": 1}, "q9": {"1": 0, "2": 0}}
    with pytest.raises(InvalidData, match="nothing says which columns are questions; give --labels FILE"):
        counts(tmp_path / "wide.csv", wide=True)


def test_lists_of_answers_share_the_respondents_weight(tmp_path: Path) -> None:
    path = answers(tmp_path, ["a", "b"], ["a"], "b", [], ["a", "a"])
    assert counts(path) == {"Q?": {"a": 2.5, "b": 1.5}}
    assert count_responses(path, None, None, None, SORTED).questions[0].respondents == 4
    assert count_responses(path, None, None, None, SORTED).most_answered == 0, "no row names its respondent"
    with pytest.raises(InvalidData, match="line 1: a list of 2 answers"):
        counts(path, multi="refuse")
    with pytest.raises(InvalidData, match="line 1: the answer is an object"):
        counts(answers(tmp_path, {"a": 1}))


@pytest.mark.parametrize("text", ["a; b", "a|b", "a,b"])
def test_a_text_that_joins_options_is_split_only_if_that_is_its_only_meaning(tmp_path: Path, text: str) -> None:
    path = answers(tmp_path, "a", "b", text)
    listed = as_json(tmp_path, "options.json", {"Q?": ["a", "b"]})
    with pytest.raises(InvalidData, match=r"line 3: .* or one option; say --multi split or keep"):
        counts(path)
    assert counts(path, multi="split") == counts(path, listed) == {"Q?": {"a": 1.5, "b": 1.5}}
    assert counts(path, multi="keep") == {"Q?": {"a": 1, "b": 1, text: 1}}
    with pytest.raises(InvalidData, match="--multi refuse does not allow"):
        counts(path, listed, multi="refuse")
    assert "1 answers to one question name several options" in str(count_responses(path, None, listed).report.notes)
    own = as_json(tmp_path, "own.json", {"Q?": ["a", "b", text]})
    assert counts(path, own) == {"Q?": {"a": 1, "b": 1, text: 1}}, "an option of the list is one answer"
    assert "1 answers are an option that joins other options" in str(count_responses(path, None, own).report.notes)


def test_a_list_that_a_program_wrote_as_a_text_is_several_answers(tmp_path: Path) -> None:
    path = answers(tmp_path, "a", "b", "['a', 'b']", "[(", "['a']")
    with pytest.raises(InvalidData, match="line 3: answer"):
        counts(path)
    assert counts(path, multi="split") == {"Q?": {"a": 1.5, "b": 1.5, "[(": 1, "['a']": 1}}


def test_a_missing_code_in_a_list_does_not_count(tmp_path: Path) -> None:
    listed = as_json(tmp_path, "options.json", {"Q?": ["1", "2"]})
    assert counts(answers(tmp_path, "1;99", [2, 99]), listed, missing=frozenset({"99"})) == {"Q?": {"1": 1, "2": 1}}


def test_questions_that_only_the_list_or_only_the_answers_have_are_told(tmp_path: Path) -> None:
    listed = as_json(tmp_path, "options.json", {"R?": YES_NO, "S?": YES_NO})
    notes = count_responses(answers(tmp_path, "a", "b"), None, listed, None, SORTED).report.notes
    assert notes == [
        "1 questions with answers are not in the list of options",
        "2 questions of the list of options have no answers",
    ]


def test_a_comma_inside_an_option_is_no_list(tmp_path: Path) -> None:
    assert counts(answers(tmp_path, "Yes, always", "No, never")) == {"Q?": {"Yes, always": 1, "No, never": 1}}


def test_waves_of_one_question_are_counted_together_or_kept_apart_as_the_partner_says(tmp_path: Path) -> None:
    rows = [{"question": "Q?", "answer": answer, "wave": wave} for answer in "ab" for wave in (1, 2)]
    path = table(tmp_path, *rows, {"question": "Q?", "answer": "a", "wave": 2})
    with pytest.raises(InvalidData, match=r"--waves pool .* or --waves apart"):
        counts(path)
    assert counts(path, waves="pool") == {"Q?": {"a": 3, "b": 2}}
    assert counts(path, waves="apart") == {"Q? (1)": {"a": 1, "b": 1}, "Q? (2)": {"a": 2, "b": 1}}
    assert counts(table(tmp_path, rows[0], rows[2])) == {"Q?": {"a": 1, "b": 1}}, "one wave is no question"


def test_a_weight_of_spaces_is_an_empty_one() -> None:
    assert (weight_of(" "), weight_of(None), weight_of(True), weight_of("-1"), weight_of("2.5")) == (
        1,
        1,
        None,
        None,
        2.5,
    )
    assert (text_of(float("nan")), text_of("a\u00a0 b"), text_of("-3.00")) == ("", "a b", "-3")


def test_the_command_prints_a_report_and_writes_it_for_the_partner_only(tmp_path: Path) -> None:
    path, out = answers(tmp_path, 1, 2, 2, 9, -5, respondent=None), tmp_path / "town.jsonl"
    listed = as_json(tmp_path, "options.json", {"Q?": ["1", "2", "3"], "R?": YES_NO})
    report = tmp_path / "report.json"
    printed = typed(path, "--out", out, "--options", listed, "--missing", "-5, 9", "--report", report)
    assert "5 rows read, 3 answers used, 2 left out (2 missing or empty)" in printed
    assert "respondents per question: 3 to 3, median 3; smallest cell: 1" in printed
    assert report.stat().st_mode & 0o077 == 0
    facts = json.loads(report.read_text())
    assert (facts["rows"], facts["answers"], facts["used"], facts["dropped"]) == (5, 5, 3, {"missing or empty": 2})
    assert facts["questions"][0] == {"question": "Q?", "respondents": 3, "smallest_cell": 1}
    assert facts["smallest_cell"] == 1, "a question that nobody answered has no cell"
    assert check_file(out).problems == ()
    assert [q.respondents for q in read_counted(out)] == [3, 0]


def test_the_codebook_of_waves_kept_apart_has_each_question_in_each_wave(tmp_path: Path) -> None:
    rows = [{"question": "Q?", "answer": answer, "wave": wave} for answer in YES_NO for wave in (1, 2)]
    out, listed = tmp_path / "town.jsonl", as_json(tmp_path, "options.json", {"Q?": YES_NO, "R?": YES_NO})
    typed(table(tmp_path, *rows), "--out", out, "--options", listed, "--waves", "apart")
    expected = ["Q? (1)", "Q? (2)", "R? (1)", "R? (2)"]
    assert [q.text for q in codebook_of(out, None)] == [q.text for q in read_counted(out)] == expected
    assert kept_codebook(out).most_answered == 0


@pytest.mark.parametrize("words", [("--missing", "none,1"), ("--weight", "w", "--no-weight")])
def test_words_of_the_command_that_contradict_each_other_are_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    with pytest.raises(InvalidArgument):
        typed(answers(tmp_path, "a", "b"), "--out", tmp_path / "x.jsonl", *words)


def opinionqa(folder: Path, *columns: str) -> list[str]:
    (folder / "info.csv").write_text("key,question,references\nk,Q?,\"['a', 'b']\"\n")
    with (folder / "responses.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["SEX", "k", *columns], ["X", "a", *"3" * len(columns)], ["X", "b", *"1" * len(columns)]]
        )
    return ["import", "opinionqa", str(folder), "--attribute", "SEX", "--value", "X", "--out", str(folder / "x.jsonl")]


@pytest.mark.parametrize("columns", [("WEIGHT_W1", "WEIGHT_W2"), ("Weight",), ("anweight",)])
def test_a_weight_of_opinionqa_that_may_be_another_is_asked_about(tmp_path: Path, columns: tuple[str, ...]) -> None:
    words = opinionqa(tmp_path, *columns)
    with pytest.raises(InvalidData, match=f"columns {', '.join(columns)} may hold .* --weight COLUMN, or --no-weight"):
        CliRunner().invoke(app, words, catch_exceptions=False)
    for more, shares in (["--weight", f"{columns[0]}*"], (0.75, 0.25)), (["--no-weight"], (0.5, 0.5)):
        assert CliRunner().invoke(app, [*words, *more]).exit_code == 0
        assert read_counted(tmp_path / "x.jsonl")[0].shares == shares
    with pytest.raises(InvalidData, match="no column 'w', which is to hold"):
        CliRunner().invoke(app, [*words, "--weight", "w"], catch_exceptions=False)


def test_the_command_of_the_page_imports_a_wide_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = [line for line in EXTENDING.read_text().splitlines() if "import responses wide.csv" in line]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wide.csv").write_text(WIDE + "dan,north,99,-1,\n")
    as_json(tmp_path, "labels.json", LABELS)
    printed = typed(*line.split()[4:])
    assert "2 questions of north" in printed
    assert "columns not used: id, note" in printed
    assert json.loads((tmp_path / "report.json").read_text())["used"] == 3


def test_opinionqa_tells_what_it_left_out_and_which_weights_it_used(tmp_path: Path) -> None:
    words = opinionqa(tmp_path, "WEIGHT_W1", "wt_k")
    with (tmp_path / "info.csv").open("a") as file:
        file.write("one,R?,\"['a']\"\nwt_k,S?,\"['a', 'b']\"\n")
    with (tmp_path / "responses.csv").open("a") as file:
        file.write("X,,1\nX,else,1\nY,a,1\n")
    done = CliRunner().invoke(app, [*words, "--report", str(tmp_path / "r.json")], catch_exceptions=False)
    assert f"weights of {tmp_path.name}: column WEIGHT_W1" in done.output
    facts = json.loads((tmp_path / "r.json").read_text())
    assert (facts["rows"], facts["used"]) == (4, 2)
    assert facts["dropped"] == {"missing or empty": 3, "not among the options of the question": 3}
    assert "one is left out: it has fewer than two options, or two that are equal" in facts["notes"]


def test_globalopinionqa_tells_the_rows_left_out_and_the_waves(tmp_path: Path) -> None:
    report = ImportReport()
    with (tmp_path / "g.csv").open("w", newline="") as file:
        rows = [["Q?", "{'Norway': [0.2, 0.8]}", "['a', 'b']"]] * 2
        rows += [["R?", "{'Chad': [1, 1]}", "['a', 'b']"], ["S?", "{'Norway': [1]}", "['a']"]]
        csv.writer(file).writerows([["question", "selections", "options"], *rows])
    assert len(import_globalopinionqa(tmp_path / "g.csv", "Norway", None, report)) == 1
    assert (report.rows, report.used) == (4, 2)
    assert dict(report.dropped) == {
        "rows without a question or two different options": 1,
        "rows without answers of the group": 1,
    }
    assert report.notes == ["1 questions were asked in several waves; their shares are the mean of the waves"]


def test_two_files_of_one_survey_have_the_same_questions_whatever_the_order_of_their_rows(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    given = [("Tea?", "Yes"), ("Tea?", "No"), ("Rice?", "Often"), ("Rice?", "Never")]
    rows = [{"question": text, "answer": answer} for text, answer in given]
    one, other = table(tmp_path / "one", *rows), table(tmp_path, *reversed(rows))
    with pytest.raises(
        InvalidData, match=r"order of the options of 'Tea\?'; give --options FILE .* --options-order sorted"
    ):
        count_responses(one, None, None)
    ids = [{q.id for q in count_responses(path, None, None, None, SORTED).questions} for path in (one, other)]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 2
    assert "2 questions" in typed(one, "--options-order", "sorted", "--out", tmp_path / "q.jsonl")


def test_a_column_joins_the_wordings_of_a_question_in_all_groups(tmp_path: Path) -> None:
    rows = [
        {"question": text, "answer": answer, "q": key, "group": group}
        for text, key, group, options in (("Tea?", 1, "a", YES_NO), ("Tee?", "1", "b", ["Ja", "Nein"]))
        for answer in options
    ]
    path = table(tmp_path, *rows)
    english, german = (count_responses(path, g, None, None, Reading(options_order="sorted", key="q")) for g in "ab")
    assert english.questions[0].key == german.questions[0].key
    assert (english.report.unused_columns, english.questions[0].stated_key) == ([], "1")
    with pytest.raises(InvalidData, match="no column no such"):
        counts(path, key="no such")
    odd = table(tmp_path, rows[0], {**rows[1], "q": 2})
    with pytest.raises(InvalidData, match=r"line 2: .*has the key '2', and in an earlier line '1'"):
        counts(odd, key="q")


def test_a_stated_key_is_kept_in_the_file_and_by_the_command(tmp_path: Path) -> None:
    path = table(tmp_path, *({"question": "Q?", "answer": answer, "code": "Q 1"} for answer in YES_NO))
    for name in ("town.jsonl", "town.parquet"):
        typed(path, "--out", tmp_path / name, "--options-order", "sorted", "--key-column", "code")
        assert [q.stated_key for q in read_counted(tmp_path / name)] == ["Q 1"]


def test_waves_that_are_kept_apart_are_withheld_together_also_from_a_group_with_one_wave(tmp_path: Path) -> None:
    rows = [{"question": "Q?", "answer": answer, "wave": wave} for answer in YES_NO for wave in (1, 2)]
    apart = Reading(options_order="sorted", waves="apart")
    several = count_responses(table(tmp_path, *rows), None, None, None, apart).questions
    single = count_responses(table(tmp_path, rows[0], rows[2]), None, None, None, SORTED).questions
    assert [q.text for q in (*several, *single)] == ["Q? (1)", "Q? (2)", "Q?"]
    assert len({q.key for q in (*several, *single)}) == 1


def test_a_key_in_rows_of_another_group_counts_for_a_question_that_this_group_has_not_answered(tmp_path: Path) -> None:
    asked = (("P?", "a", 1), ("Q?", "b", 2))
    rows = [{"question": text, "answer": "Yes", "group": group, "q": key} for text, group, key in asked]
    listed = as_json(tmp_path, "options.json", {"P?": YES_NO, "Q?": YES_NO})
    questions = count_responses(table(tmp_path, *rows), "a", listed, None, Reading(key="q")).questions
    assert [(q.text, q.stated_key, q.respondents) for q in questions] == [("P?", "1", 1), ("Q?", "2", 0)]
    with pytest.raises(InvalidData, match=r"line 3: .*has the key '9'"):
        count_responses(table(tmp_path, *rows, {**rows[1], "q": 9}), "a", listed, None, Reading(key="q"))


def test_a_wide_file_has_no_column_of_keys(tmp_path: Path) -> None:
    labels = as_json(tmp_path, "l.json", {"q1": {"labels": {"1": "Yes", "2": "No"}}})
    path = table(tmp_path, {"q1": 1, "key": "x"}, {"q1": 2, "key": "x"})
    with pytest.raises(InvalidData, match="--key-column"):
        typed(path, "--out", tmp_path / "x.jsonl", "--wide", "--labels", labels, "--key-column", "key")


def test_two_groups_withhold_the_same_questions_whatever_the_order_that_each_import_states(tmp_path: Path) -> None:
    """FINDINGS C1: two groups, the same 200 questions, and one withheld what the other trained on."""
    listed = {f"Question {number}?": YES_NO for number in range(200)}
    turned = {text: [option.upper() for option in reversed(options)] for text, options in listed.items()}
    rows = [{"question": text, "answer": answer} for text in listed for answer in YES_NO]
    files = []
    for name, options in (("north", listed), ("south", turned)):
        source = rows if name == "north" else [row | {"answer": row["answer"].upper()} for row in reversed(rows)]
        out = tmp_path / f"{name}.jsonl"
        typed(table(tmp_path, *source), "--out", out, "--options", as_json(tmp_path, f"{name}.json", options))
        files.append(read_counted(out))
    withheld = [{q.text for q in questions if HoldOut(0.2).includes(q)} for questions in files]
    assert withheld[0] == withheld[1] != set()
    assert not {q.id for q in files[0]} & {q.id for q in files[1]}


def test_labels_of_all_columns_and_codes_are_the_codebook_of_a_wide_file(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    path.write_text("q1,q2\n1,1\n2,-1\n")
    labels = {
        "q1": {"question": "Tea?", "labels": {"1": "Yes", "2": "No"}},
        "q2": {"labels": {"1": "a", "2": "b", "-1": "?"}},
    }
    out = tmp_path / "g.jsonl"
    words: list[str | Path] = [
        path,
        "--wide",
        "--labels",
        as_json(tmp_path, "l.json", labels),
        "--missing",
        "-1",
        "--out",
        out,
    ]
    typed(*words)
    asked = kept_codebook(out).asked
    assert asked is not None
    assert {one.question: one.options for one in asked} == {"Tea?": ("Yes", "No"), "q2": ("a", "b")}
    listed = as_json(tmp_path, "o.json", {"q2": ["a", "b"], "Tea?": ["Yes", "No"]})
    typed(*words, "--options", listed)
    assert [one.question for one in kept_codebook(out).asked or ()] == ["q2", "Tea?"], "a stated list goes first"
    as_json(tmp_path, "l.json", labels | {"q2": {}})
    typed(*words, "--options-order", "sorted")
    assert kept_codebook(out).asked is None, "nothing says the options of q2"


def test_a_group_in_a_file_without_that_column_names_the_columns_and_the_option(tmp_path: Path) -> None:
    source = answers(tmp_path, "Yes", "No", country="North")
    with pytest.raises(InvalidData, match="no column group; --group-column names one of question, answer, country"):
        count_responses(source, "North", None, None, SORTED)
