"""Every format of a table is read with one meaning, and each bad row is a problem with its line."""

import contextlib
import csv
import gzip
import io
import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyreadstat
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pluralllm.client.data.codebook import codebook_of, keep_codebook
from pluralllm.client.data.preferences.ballots import text_of as candidate_text
from pluralllm.client.data.preferences.imports import Reading as Preferences
from pluralllm.client.data.preferences.imports import read_preferences
from pluralllm.client.data.private_data import read_group, write_group
from pluralllm.client.data.responses import Reading, import_responses
from pluralllm.client.data.survey_texts import text_of
from pluralllm.client.data.tables import csv_rows, read_table, table_rows
from pluralllm.client.data_commands import app
from pluralllm.common.errors.tree import ExtraMissing, InvalidData
from pluralllm.common.words.questions import Question

ROWS = [{"question": "Tea?", "answer": "Yes"}, {"question": "Tea?", "answer": "Né; 5 | \x85no"}]


def kept(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in table_rows(path, {"question", "answer"})]


def delimited(rows: list[dict[str, Any]], delimiter: str = ",") -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def written(folder: Path, rows: list[dict[str, Any]], ending: str) -> Path:
    """Writes rows in the format that an ending names."""
    path = folder / f"rows.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    texts = {
        "csv": lambda: delimited(rows),
        "tsv": lambda: delimited(rows, "\t"),
        "jsonl": lambda: "\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
        "json": lambda: json.dumps(rows, indent=1),
    }
    path.write_bytes(texts[ending]().encode())
    return path


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_each_format_has_the_same_rows(tmp_path: Path, ending: str) -> None:
    assert kept(written(tmp_path, ROWS, ending)) == ROWS


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(tmp_path: Path, delimiter: str) -> None:
    (tmp_path / "a.csv").write_text(delimited(ROWS, delimiter), newline="")
    assert kept(tmp_path / "a.csv") == ROWS


def test_the_delimiter_is_the_one_that_finds_the_named_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question;answer;a|b|c|d\nTea?;Yes;1|2|3|4\n")
    assert kept(tmp_path / "a.csv")[0]["answer"] == "Yes"


def test_the_delimiter_can_be_stated(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b^c\n1,2^3\n")
    assert table_rows(tmp_path / "a.csv", delimiter="^") == [(2, {"a,b": "1,2", "c": "3"})]
    (tmp_path / "b.csv").write_text("sep=;\na;b,c,d\n1;2\n")
    assert table_rows(tmp_path / "b.csv") == [(3, {"a": "1", "b,c,d": "2"})]
    with pytest.raises(InvalidData, match="the delimiter 'ab' is not one character"):
        table_rows(tmp_path / "a.csv", delimiter="ab")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_the_encoding_is_found(tmp_path: Path, encoding: str, ending: str) -> None:
    path = written(tmp_path, ROWS, ending)
    path.write_bytes(path.read_bytes().decode().encode(encoding))
    assert kept(path) == ROWS


def test_a_guessed_encoding_is_told_and_another_can_be_stated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("question,answer\nTea?,Né\n".encode("cp1252"))
    assert kept(path) == [{"question": "Tea?", "answer": "Né"}]
    assert "line 2 is no UTF-8, so the file is read as cp1252" in capsys.readouterr().err
    assert table_rows(path, encoding="cp1250")[0][1]["answer"] == "Né"
    assert capsys.readouterr().err == ""
    for encoding, problem in (
        ("utf-8", "line 2 has the byte 0xe9, which is no utf-8"),
        ("no", "cannot be read as 'no'"),
    ):
        with pytest.raises(InvalidData, match=problem):
            table_rows(path, encoding=encoding)
    path.write_bytes("\ufeffquestion,answer\nTea?,Né\n".encode())
    assert kept(path) == [row for _, row in table_rows(path, {"question"}, encoding="utf-8")]
    path.write_bytes(b"question,answer\nTea?,\x81\n")
    with pytest.raises(InvalidData, match="line 2 has the byte 0x81, which is no cp1252; save the file as UTF-8"):
        table_rows(path)


@pytest.mark.parametrize(
    "content",
    [
        {"data": ROWS},
        {"version": 1, "rows": ROWS},
        {"first": ROWS[0], "second": ROWS[1]},
        {name: [row[name] for row in ROWS] for name in ROWS[0]},
        {name: {str(n): row[name] for n, row in enumerate(ROWS)} for name in ROWS[0]},
    ],
)
def test_an_object_of_rows_or_columns_is_a_table(tmp_path: Path, content: Any) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert kept(tmp_path / "a.json") == ROWS


def test_json_lines_are_read_whatever_the_name_of_the_file_ends_in(tmp_path: Path) -> None:
    lines = written(tmp_path, ROWS, "jsonl").rename(tmp_path / "a.json")
    whole = written(tmp_path, ROWS, "json").rename(tmp_path / "b.jsonl")
    named = tmp_path / "c.txt"
    named.write_bytes(lines.read_bytes())
    assert kept(lines) == kept(whole) == kept(named) == ROWS
    named.write_text(delimited(ROWS), newline="")
    assert kept(named) == ROWS


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_gzip_file_is_unpacked(tmp_path: Path, ending: str) -> None:
    rows = [*ROWS, {"question": "a" * 1_000_000, "answer": "b"}]
    path = written(tmp_path, rows, ending)
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert kept(packed) == rows
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(InvalidData, match="it is no gzip file, or it is damaged"):
        kept(packed)


def test_absent_values_are_none_and_zero_is_a_value(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": NaN, "b": null, "c": 0, "d": false, "e": [NaN, 5.0]}\n')
    assert str(table_rows(tmp_path / "a.jsonl")) == str(
        [(1, {"a": None, "b": None, "c": 0, "d": False, "e": [None, 5]})]
    )
    columns = {"day": [date(2026, 1, 2)], "price": [Decimal("1.50")], "x": pa.array([0.1], pa.float32()), "b": [b"t"]}
    columns |= {"n": [float("nan")]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert table_rows(tmp_path / "a.parquet") == [
        (1, {"day": "2026-01-02", "price": "1.50", "x": 0.1, "b": "t", "n": None})
    ]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv", 'question,answer\nQ,a\nQ,"a"b\nQ,b\n', "line 3: not CSV"),
        ("a.csv", 'question,answer\nQ,a\nQ,"a\nQ,b\n', "line 3: not CSV: unexpected end of data"),
        ("a.csv", "question,answer\nQ,a\n\nQ,\0\n", "line 4: it has a NUL character"),
        ("a.csv", '"question,answer\nQ,a\n', "line 1: not CSV"),
        ("a.csv", "question,answer,answer\nQ,a,b\n", "two columns have the name answer"),
        ("a.csv", 'question,answer\n"Q\nR",a\nQ,a,b\n', "line 4: it has more fields"),
        ("a.csv", "", "no column answer, question; it has: no column"),
        ("a.jsonl", '{"question": "Q"}\n', "no column answer; it has: question"),
        ("a.jsonl", f'{{"question": {10**5 * "1"}}}\n', "line 1: not JSON: .*integer string"),
        ("a.json", '[{"question": "Q", "answer": "a"}, 5]', "line 2: not a JSON object"),
        ("a.json", "5", "not a list of JSON objects"),
        ("a.json", '[{"question": "Q",\n "answer" 5}]', "not JSON: .*line 2"),
        ("a.json", '{"question": ["Q"], "answer": []}', "its columns differ in length"),
        ("a.xlsx", "PK", "save the sheet as CSV UTF-8"),
        ("a.sav", "nothing", "it is no file of SPSS or Stata, or it is damaged"),
        ("a.dta", "", "it is no file of SPSS or Stata, or it is damaged"),
        ("a.jsonl", "$FL2", "let its name end in .sav"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: str, problem: str) -> None:
    (tmp_path / name).write_text(content, newline="")
    with pytest.raises(InvalidData, match=problem):
        table_rows(tmp_path / name, {"question", "answer"})


def test_bad_rows_are_listed_beside_the_good_ones(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n" + 'x,"y"z\n' * 25 + "3,4\n")
    table = read_table(tmp_path / "a.csv")
    assert table.rows == ((2, {"a": "1", "b": "2"}), (28, {"a": "3", "b": "4"}))
    assert [line for line, _ in table.problems] == list(range(3, 28))
    with pytest.raises(InvalidData, match=r"line 22: .*\n  and 5 more"):
        table_rows(tmp_path / "a.csv")


def test_a_long_field_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"question,answer\nQ,{'a' * 200_000}\n")
    assert len(kept(tmp_path / "a.csv")[0]["answer"]) == 200_000


def test_a_truth_value_has_one_text_in_surveys_tables_and_preferences(tmp_path: Path) -> None:
    row = {"question": "Q", "prompt": "p", "options": [True, False], "votes": [1, 0], "group": True}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    assert dict(csv_rows(tmp_path / "a.jsonl", {"group"}))[1]["group"] == "true"
    assert (text_of(True), text_of(False), candidate_text(False)) == ("true", "false", "false")
    (question,) = read_preferences(tmp_path / "a.jsonl", Preferences(group="true")).questions
    assert dict(zip(question.options, question.shares, strict=True)) == {"true": 1, "false": 0}
    mapped = Preferences(
        group="true", group_column="group", columns={"prompt": "prompt", "candidates": "options", "votes": "votes"}
    )
    assert read_preferences(tmp_path / "a.jsonl", mapped).questions == (question,)


@pytest.mark.parametrize("ending", ["sav", "dta"])
def test_files_of_statistics_programs_have_their_labels(tmp_path: Path, ending: str) -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"question": ["Q", "R"], "answer": [1.0, float("nan")], "weight": [0.5, 2.0]})
    write = pyreadstat.write_sav if ending == "sav" else pyreadstat.write_dta
    write(frame, str(tmp_path / f"a.{ending}"), variable_value_labels={"answer": {1: "Yes"}})
    assert table_rows(tmp_path / f"a.{ending}", {"question"}) == [
        (1, {"question": "Q", "answer": "Yes", "weight": 0.5}),
        (2, {"question": "R", "answer": None, "weight": 2.0}),
    ]


def test_a_file_of_a_statistics_program_names_the_extra_that_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExtraMissing, match=r"pip install 'pluralllm-client\[surveys\]'"):
        table_rows(tmp_path / "a.sav")


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1, max_size=8).filter(str.strip)
ANSWERS = st.one_of(TEXTS, st.integers(-5, 10**15), st.sampled_from([0, 0.5, 1e-7, None]))


PLAIN = Reading(missing=frozenset(), multi="keep", options_order="sorted")  # whatever an answer looks like


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TEXTS, ANSWERS, st.sampled_from([1, 0.5, 2.0])), min_size=1, max_size=8))
def test_the_same_rows_in_any_format_import_to_the_same_questions(tmp_path: Path, drawn: list[Any]) -> None:
    answers = [answer for _, answer, _ in drawn]
    rows = [{"question": question, "answer": answer, "weight": weight} for question, answer, weight in drawn]
    if any(isinstance(answer, str) for answer in answers):  # a column of a Parquet file has one type
        rows = [row | {"answer": None if row["answer"] is None else str(row["answer"])} for row in rows]
    imported = []
    for ending in ("csv", "tsv", "jsonl", "json", "parquet"):
        questions = import_responses(written(tmp_path, rows, ending), None, None, 2.0, PLAIN)
        write_group(tmp_path / "out.jsonl", questions)
        imported.append((tmp_path / "out.jsonl").read_bytes())
    assert len(set(imported)) == 1


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_line_separator_in_a_text_stays_where_it_is(tmp_path: Path, ending: str) -> None:
    texts = [f"a{mark}b" for mark in ("\x85", "\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x1e")]
    question = Question("Which\x85one?", tuple(texts), (1 / 7,) * 7)
    write_group(tmp_path / f"g.{ending}", [question])
    assert read_group(tmp_path / f"g.{ending}") == (question,)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_what_a_reader_would_refuse_is_not_written(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"g.{ending}"
    questions = [Question(" ", ("a", "b"), (0.5, 0.5)), Question("Q?", ("a", "b"), (0.5, 0.1))]
    with pytest.raises(InvalidData, match=r"question 1: the question is empty.*\n.*question 2: shares sum to 0.6"):
        write_group(path, questions)
    assert not path.exists()


def test_the_command_takes_encoding_and_delimiter(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_bytes("question^answer\nTea?^á\nTea?^ł\n".encode("cp1250"))
    arguments = [
        "import",
        "responses",
        str(tmp_path / "b.csv"),
        "--encoding",
        "cp1250",
        "--delimiter",
        "^",
        "--options-order",
        "sorted",
    ]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "g.jsonl")])
    assert result.exit_code == 0, result.output
    assert read_group(tmp_path / "g.jsonl")[0].options == ("á", "ł")


PIECES = st.sampled_from(
    [
        b"PAR1",
        b"$FL2",
        b"\x1f\x8b",
        b"{",
        b"[",
        b"}",
        b"]",
        b'"a"',
        b":",
        b",",
        b";",
        b'"',
        b"\n",
        b"\r",
        b"\0",
        b"1e999",
        b"\xff\xfe",
    ]
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.one_of(PIECES, st.binary(max_size=6)), max_size=12),
    st.sampled_from(["csv", "tsv", "json", "jsonl", "parquet", "sav", "dta", "csv.gz", "jsonl.gz", "txt", "", "xlsx"]),
    st.sampled_from([None, "utf-16", "base64", "idna", "punycode", "utf-7", "undefined", "cp1252", "\0"]),
)
def test_no_bytes_end_in_anything_but_a_table_or_a_problem(
    tmp_path: Path, pieces: list[bytes], ending: str, encoding: str | None
) -> None:
    path = tmp_path / f"a.{ending}"
    content = b"".join(pieces)
    path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    with contextlib.suppress(InvalidData):
        table_rows(path, encoding=encoding)


def test_pairs_and_codebooks_keep_line_separators(tmp_path: Path) -> None:
    question = Question("Which\x85one?", ("a\u2028b", "c\x85d"), (0.75, 0.25))
    write_group(tmp_path / "g.jsonl", [question])
    keep_codebook(tmp_path / "g.jsonl", [question])
    assert [(q.text, q.options) for q in codebook_of(tmp_path / "g.jsonl", None)] == [(question.text, question.options)]
    result = CliRunner().invoke(app, ["pairs", str(tmp_path / "g.jsonl"), "--out", str(tmp_path / "pairs.jsonl")])
    assert result.exit_code == 0, result.output
    assert [row["chosen"] for _, row in table_rows(tmp_path / "pairs.jsonl", {"prompt"})] == ["a\u2028b"]
