"""The private file is read, and all its faults are reported at once."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluralllm.client.data.private_data import check_file, read_group, write_group
from pluralllm.common.errors.tree import InvalidData
from pluralllm.common.words.questions import Question

GOOD: dict[str, Any] = {"question": "Tea or coffee?", "options": ["Tea", "Coffee"], "shares": [0.25, 0.75]}


def written(folder: Path, *rows: Any) -> Path:
    path = folder / "answers.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_shares_and_counts_become_shares_that_sum_to_1(tmp_path: Path) -> None:
    counts = {"question": "Bus?", "options": ["Yes", "No", "Never"], "counts": [1, 2, 5], "scale": [0, 1, None]}
    rounded = {"question": "Cat?", "options": ["Yes", "No"], "shares": [0.5, 0.49]}
    questions = read_group(written(tmp_path, GOOD, counts, rounded))
    assert [question.shares for question in questions[:2]] == [(0.25, 0.75), (0.125, 0.25, 0.625)]
    assert sum(questions[2].shares) == pytest.approx(1, abs=1e-15)
    assert questions[1].scale == (0, 1, None)


@pytest.mark.parametrize(
    ("change", "expected_text"),
    [
        ({"shares": [0.25, 0.7]}, "shares sum to 0.95, not to 1 (±0.02); give counts instead, or mend them"),
        ({"shares": None, "counts": [3, -1]}, "counts has the negative number -1"),
        ({"shares": None, "counts": [1e308, 1e308]}, "counts are too large to be added"),
        ({"shares": None, "counts": [0, 0]}, "counts are all 0; leave the question out"),
        ({"shares": [1.0]}, "1 shares for 2 options; give one for each"),
        ({"question": "  "}, "the question is empty; give its text"),
        ({"options": ["Tea", " "]}, "some may be empty"),
        ({"options": ["Tea", "Tea"]}, "an option is there twice"),
        ({"options": ["Tea"], "shares": [1.0]}, "give at least 2"),
        ({"counts": [1, 3]}, "give either shares or counts"),
        ({"shares": None}, "give either shares or counts"),
        ({"scale": [1]}, "scale has 1 positions for 2 options"),
        ({"weight": 0}, "weight: Input should be greater than 0"),
        ({"anser": 1}, "anser: unknown field; allowed: question, options, shares, counts, scale, weight"),
        ({"shares": "half"}, "shares: Input should be a valid tuple"),
    ],
)
def test_a_bad_row_is_named_with_its_line_and_the_fix(
    tmp_path: Path, change: dict[str, Any], expected_text: str
) -> None:
    row = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    path = written(tmp_path, {"question": "Other?", "options": ["A", "B"], "shares": [0.5, 0.5]}, row)
    with pytest.raises(InvalidData) as refused:
        read_group(path)
    assert expected_text in str(refused.value)
    assert "line 2: " in str(refused.value)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_is_none_is_refused(tmp_path: Path, number: str) -> None:
    path = written(tmp_path, f'{{"question": "Q?", "options": ["A", "B"], "shares": [{number}, 0.5]}}')
    with pytest.raises(InvalidData, match="is NaN or infinite; give a finite number"):
        read_group(path)


def test_duplicate_questions_are_named_with_both_lines(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="line 3: the same question and options as line 1"):
        read_group(written(tmp_path, GOOD, "", GOOD))


def test_all_problems_of_a_file_are_listed_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "not json", "[1]", {**GOOD, "shares": [2, 2]}, GOOD, {**GOOD, "question": ""})
    checked = check_file(path)
    assert [problem.line for problem in checked.problems] == [1, 2, 3, 5]
    assert len(checked.questions) == 1


def test_an_empty_or_absent_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="it has no questions"):
        read_group(written(tmp_path))
    with pytest.raises(InvalidData, match="there is no such file"):
        read_group(tmp_path / "none.jsonl")


def test_problems_of_a_parquet_file_are_named_by_row(tmp_path: Path) -> None:
    rows = [GOOD, {**GOOD, "question": "Other?", "shares": [0.1, 0.1]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    with pytest.raises(InvalidData, match=r"line 2: shares sum to 0\.2"):
        read_group(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    with pytest.raises(InvalidData, match="it is no Parquet file"):
        read_group(tmp_path / "b.parquet")


@pytest.mark.parametrize("error", [pa.ArrowNotImplementedError("x"), pa.ArrowTypeError("x"), OverflowError("x")])
def test_whatever_pyarrow_raises_the_file_is_named(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_table(_: object) -> None:
        raise error

    (tmp_path / "a.parquet").write_bytes(b"x")
    monkeypatch.setattr(pq, "read_table", read_table)
    with pytest.raises(InvalidData, match="it is no Parquet file, or it is damaged: x"):
        read_group(tmp_path / "a.parquet")


words = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=20).filter(str.strip)


@st.composite
def questions(draw: st.DrawFn) -> Question:
    options = tuple(draw(st.lists(words, min_size=2, max_size=6, unique=True)))
    counts = draw(st.lists(st.integers(1, 1000), min_size=len(options), max_size=len(options)))
    scale = draw(st.none() | st.lists(st.none() | st.floats(-5, 5), min_size=len(options), max_size=len(options)))
    shares = tuple(count / sum(counts) for count in counts)
    return Question(
        draw(words).strip(), options, shares, None if scale is None else tuple(scale), draw(st.floats(0.1, 9))
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(questions(), min_size=1, max_size=8, unique_by=lambda q: q.id), st.sampled_from([".jsonl", ".parquet"]))
def test_what_is_written_is_read_again(group_questions: list[Question], suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"group{suffix}"
        write_group(path, group_questions)
        assert path.stat().st_mode & 0o077 == 0, "only its owner reads it"
        again = read_group(path)
    assert [(q.text, q.options, q.scale, q.weight) for q in again] == [
        (q.text, q.options, q.scale, q.weight) for q in group_questions
    ]
    for one, other in zip(again, group_questions, strict=True):
        assert one.shares == pytest.approx(other.shares, abs=1e-12)


def test_a_question_shows_no_content() -> None:
    assert "Tea" not in repr(Question("Tea or coffee?", ("Tea", "Coffee"), (0.5, 0.5)))


def test_a_parquet_file_has_the_columns_of_the_format_also_where_all_values_are_absent(tmp_path: Path) -> None:
    write_group(tmp_path / "a.parquet", [Question("Tea?", ("Yes", "No"), (0.5, 0.5))])
    schema = pq.read_schema(tmp_path / "a.parquet")
    assert (schema.field("scale").type, schema.field("weight").type) == (pa.list_(pa.float64()), pa.float64())
