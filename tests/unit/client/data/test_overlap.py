"""Groups are told whether their questions are those of the others: else one group trains on what another withholds."""

import json
from dataclasses import replace
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


def checked(folder: Path, listed: dict[str, list[str]], code: int, *more: str, tells: bool = False) -> dict[str, Any]:
    write_group(folder / "town.jsonl", HERE)
    (folder / "all.json").write_text(json.dumps(listed))
    words = ["check", str(folder / "town.jsonl"), "--against", str(folder / "all.json"), *more]
    printed = CliRunner().invoke(app, words)
    assert printed.exit_code == code, printed.output
    assert ("import with --options" in printed.output) is tells
    facts: dict[str, Any] = json.loads(CliRunner().invoke(app, [*words, "--json"]).output)
    return facts


def test_check_counts_what_a_file_shares_with_a_list(tmp_path: Path) -> None:
    facts = checked(tmp_path, {"Tea?": ["Yes", "No"], "Milk?": ["Yes", "No"], "Other?": ["a", "b"]}, 0)
    assert (facts["shared_questions"], facts["differently_written"]) == (2, 0)


@pytest.mark.parametrize(
    ("run_format", "code", "tells"), [(None, 0, True), ("run/1", 3, True), ("run/2", 3, True), ("run/3", 0, False)]
)
def test_a_question_in_another_order_is_a_problem_of_earlier_formats(
    tmp_path: Path, run_format: str | None, code: int, tells: bool
) -> None:
    more: list[str] = []
    if run_format is not None:
        text = (
            f'format = "pluralllm.{run_format}"\nembedding = {{model = "m", dimension = 2}}\n'
            "training.episodes = {min_context = 1, max_context = 1, min_targets = 1, max_targets = 1}\n"
            "evaluation.holdout_share = 0.0\n"
        )
        (tmp_path / "spec.toml").write_text(text)
        more = ["--spec", str(tmp_path / "spec.toml")]
    facts = checked(tmp_path, {"Tea?": ["Yes", "No"], "Rice?": ["Yes", "No"]}, code, *more, tells=tells)
    assert (facts["shared_questions"], facts["differently_written"]) == (1, 1)


def test_check_tells_of_questions_that_a_file_has_twice(tmp_path: Path) -> None:
    again = [question("tea?", "no", "yes"), replace(question("Te?", "Sí", "No"), stated_key="tea")]
    joined = [
        *again,
        replace(question("Tee?", "Ja", "Nein"), stated_key="tea"),
    ]  # the partner has said that they are one
    for more, twice in (([], 0), (again, 1), (joined, 1), (joined[1:], 0)):
        write_group(tmp_path / "town.jsonl", [*HERE, *more])
        printed = CliRunner().invoke(app, ["check", str(tmp_path / "town.jsonl")])
        assert printed.exit_code == 0
        assert (f"{twice} questions are another one of the file" in printed.output) is (twice > 0)
