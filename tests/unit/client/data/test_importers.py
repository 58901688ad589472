"""The importers read the layouts of public surveys."""

import json
import os
from pathlib import Path

import pytest

from pluralllm.client.data.importers import import_globalopinionqa, import_opinionqa
from pluralllm.client.data.private_data import read_group, write_group
from pluralllm.client.data.responses import Reading, import_responses
from pluralllm.common.errors.tree import InvalidData

SORTED = Reading(options_order="sorted")
HEADER = "question,selections,options,source\n"


def test_globalopinionqa_rows_of_one_country_are_taken(tmp_path: Path) -> None:
    selections = "\"defaultdict(<class 'list'>, {'Norway': [0.2, 0.8], 'Chad': [0, 0], 'Peru': []})\""
    numbers = "\"defaultdict(<class 'list'>, {'Norway': [1.0, 3.0]})\""
    (tmp_path / "g.csv").write_text(
        HEADER
        + f"Snow?,{selections},\"['Yes', 'No']\",GAS\n"
        + f'How many?,{numbers},"[1, 2]",WVS\n'
        + f',{numbers},"[1, 2]",WVS\n'
        + f"Snow?,{numbers},\"['Yes', 'No']\",GAS\n"
    )
    found = import_globalopinionqa(tmp_path / "g.csv", "Norway")
    assert [(q.text, q.options) for q in found] == [("Snow?", ("Yes", "No")), ("How many?", ("1", "2"))]
    assert found[0].shares == pytest.approx((0.225, 0.775))
    assert import_globalopinionqa(tmp_path / "g.csv", "Chad") == ()
    assert import_globalopinionqa(tmp_path / "g.csv", "Peru") == ()


def test_an_unknown_country_lists_near_names(tmp_path: Path) -> None:
    (tmp_path / "g.csv").write_text(
        HEADER + "Q?,\"defaultdict(<class 'list'>, {'Great Britain': [1, 1]})\",\"['a', 'b']\",GAS\n"
    )
    with pytest.raises(InvalidData, match="no group 'Britain'; near: Great Britain"):
        import_globalopinionqa(tmp_path / "g.csv", "Britain")


def test_a_file_of_another_layout_says_which_columns_are_absent(tmp_path: Path) -> None:
    (tmp_path / "g.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InvalidData, match="no column options, question, selections; it has: a, b"):
        import_globalopinionqa(tmp_path / "g.csv", "Norway")


@pytest.mark.parametrize(("country", "count"), [("Germany", 241), ("Japan", 169), ("New Zealand", 38)])
def test_the_real_survey_imports_and_is_canonical(survey: Path, tmp_path: Path, country: str, count: int) -> None:
    found = import_globalopinionqa(survey, country)
    write_group(tmp_path / "g.jsonl", found)
    assert len(read_group(tmp_path / "g.jsonl")) == len(found) == count


def test_opinionqa_counts_weighted_answers_of_one_group(tmp_path: Path) -> None:
    wave = tmp_path / "human_resp" / "American_Trends_Panel_W1"
    wave.mkdir(parents=True)
    (wave / "info.csv").write_text(
        "key,question,references,option_ordinal\n"
        "SAFE,How safe?,\"['Very', 'Not', 'Refused']\",\"[1.0, 2.0]\"\n"
        "GONE,Nobody answered?,\"['a', 'b']\",\n"
    )
    (wave / "responses.csv").write_text(
        "SAFE,GONE,POLPARTY,WEIGHT_W1\nVery,,Democrat,1\nNot,,Democrat,2\nVery,,Republican,9\nRefused,,Democrat,1\n"
    )
    found = import_opinionqa(tmp_path / "human_resp", "POLPARTY", "Democrat")
    assert [(q.text, q.shares, q.scale) for q in found] == [("How safe?", (0.25, 0.5, 0.25), (1.0, 2.0, None))]
    with pytest.raises(InvalidData, match="no POLPARTY 'Democrats'; near: Democrat"):
        import_opinionqa(tmp_path / "human_resp", "POLPARTY", "Democrats")


def test_responses_become_distributions(tmp_path: Path) -> None:
    rows = [
        ("north", "Tea?", "Yes", 1),
        ("north", "Tea?", "No", 3),
        ("south", "Tea?", "Yes", 9),
        ("north", "Tea?", "", 1),
    ]
    lines = [",".join(map(str, row)) for row in rows]
    (tmp_path / "r.csv").write_text("group,question,answer,weight\n" + "\n".join(lines) + "\n")
    found = import_responses(tmp_path / "r.csv", "north", None, reading=SORTED)
    assert [(q.options, q.shares) for q in found] == [(("No", "Yes"), (0.75, 0.25))]
    (tmp_path / "options.json").write_text(json.dumps({"Tea?": ["No", "Maybe", "Yes"]}))
    ordered = import_responses(tmp_path / "r.csv", "north", tmp_path / "options.json")
    assert [(q.options, q.shares) for q in ordered] == [(("No", "Maybe", "Yes"), (0.75, 0.0, 0.25))]


def test_responses_that_cannot_be_counted_are_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"question": "Q?", "answer": "A", "weight": "heavy"}\n')
    with pytest.raises(InvalidData, match="line 1: weight 'heavy' is not a number"):
        import_responses(tmp_path / "r.jsonl", None, None)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", '{"question": "Q", "answer": "a"}\n[1]\n', "line 2: not a JSON object"),
        ("a.jsonl", '{"question": "Q", "answer": "\\ud83d"}\n', "line 1: not JSON: .* half a character"),
        ("a.jsonl", "\n{\n", "line 2: not JSON"),
        ("a.jsonl", "[" * 100_000, "line 1: not JSON: its objects and lists are nested too deep"),
        ("a.jsonl", '{"question": "Q", "answer": "a", "weight": [1]}', "line 1: weight .* is not a number"),
        ("a.csv", "question,answer\nQ,a,b\n", "line 2: it has more fields than the first line"),
        ("a.parquet", "PAR1", "it is no Parquet file"),
        ("a.parquet", "", "it is no Parquet file"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, name: str, content: str, problem: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidData, match=problem):
        import_responses(tmp_path / name, None, None)


def test_a_pipe_is_no_parquet_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.parquet")
    with pytest.raises(InvalidData, match="it is a pipe, not a file"):
        import_responses(tmp_path / "a.parquet", None, None)


def test_a_folder_is_no_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").mkdir()
    with pytest.raises(InvalidData, match="it is a folder"):
        import_responses(tmp_path / "a.parquet", None, None)


def test_a_short_row_of_a_csv_file_has_empty_fields_at_its_end(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer,group\nQ,a\nQ,b\nQ,a,,\n")
    assert import_responses(tmp_path / "a.csv", None, None, reading=SORTED)[0].shares == pytest.approx((2 / 3, 1 / 3))


@pytest.mark.parametrize("field", ["5", "\"{'Norway': 5}\"", "", '"{' + "(" * 300 + '}"'])
def test_a_field_that_is_no_literal_is_named(tmp_path: Path, field: str) -> None:
    (tmp_path / "g.csv").write_text(HEADER + f"Q?,{field},5,GAS\n")
    with pytest.raises(InvalidData, match="line 2: selections or options cannot be read"):
        import_globalopinionqa(tmp_path / "g.csv", "Norway")


def test_a_weight_of_a_respondent_that_is_no_number_is_named(tmp_path: Path) -> None:
    (tmp_path / "info.csv").write_text("key,question,references\nk,Q?,\"['a', 'b']\"\n")
    (tmp_path / "responses.csv").write_text("POLPARTY,k,WEIGHT_1\nX,a,heavy\n")
    with pytest.raises(InvalidData, match="line 2: weight 'heavy' is not a number"):
        import_opinionqa(tmp_path, "POLPARTY", "X")
