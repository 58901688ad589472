"""Groups are told whether their questions are those of the others: else one group trains on what another withholds."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pluralllm.client.data.overlap import Overlap, overlap
from pluralllm.client.data.private_data import write_group
from pluralllm.client.data_commands import app
from pluralllm.common.words.questions import Question


def question(text: str, *options: str) -> Question:
    return Question(text, options, tuple(1 / len(options) for _ in options))


HERE = [question("Tea?", "Yes", "No"), question("Rice?", "No", "Yes"), question("Milk?", "Yes", "No")]


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (question("Tea?", "Yes", "No"), Overlap(1, 0)),
        (question("Tea?", "No", "Yes"), Overlap(0, 1)),
        (question("tea?", "yes", "no"), Overlap(0, 1)),
        (question("Tea?", "Yes", "No", "Unsure"), Overlap(0, 0)),
        (question("Coffee?", "Yes", "No"), Overlap(0, 0)),
    ],
)
def test_questions_are_compared_by_id_and_by_words(other: Question, found: Overlap) -> None:
    assert overlap(HERE, [other]) == found


def checked(folder: Path, listed: dict[str, list[str]], code: int) -> dict[str, Any]:
    write_group(folder / "town.jsonl", HERE)
    (folder / "all.json").write_text(json.dumps(listed))
    words = ["check", str(folder / "town.jsonl"), "--against", str(folder / "all.json")]
    printed = CliRunner().invoke(app, words)
    assert printed.exit_code == code, printed.output
    assert ("import with --options" in printed.output) is (code == 3)
    facts: dict[str, Any] = json.loads(CliRunner().invoke(app, [*words, "--json"]).output)
    return facts


def test_check_counts_what_a_file_shares_with_a_list(tmp_path: Path) -> None:
    facts = checked(tmp_path, {"Tea?": ["Yes", "No"], "Milk?": ["Yes", "No"], "Other?": ["a", "b"]}, 0)
    assert (facts["shared_questions"], facts["differently_written"]) == (2, 0)


def test_a_question_in_another_order_is_a_problem(tmp_path: Path) -> None:
    facts = checked(tmp_path, {"Tea?": ["Yes", "No"], "Rice?": ["Yes", "No"]}, 3)
    assert (facts["shared_questions"], facts["differently_written"]) == (1, 1)
