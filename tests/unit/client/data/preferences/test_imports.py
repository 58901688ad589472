"""Preferences between candidates, in the layouts of data sets on the Hub."""

import json
from pathlib import Path
from typing import Any

import pytest

from pluralllm.client.data.preferences.imports import import_preferences
from pluralllm.client.data.preferences.rows import candidates_of
from pluralllm.common.errors.tree import InvalidData


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def shares(path: Path, group: str | None = None) -> dict[str, dict[str, float]]:
    return {q.text: dict(zip(q.options, q.shares, strict=True)) for q in import_preferences(path, group)}


def test_each_chosen_and_rejected_pair_is_a_vote_and_the_same_pair_is_counted_together(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": "x", "rejected": "y"}] * 3 + [{"prompt": "p", "chosen": "y", "rejected": "x"}]
    assert shares(written(tmp_path, rows)) == {"p": {"x": 0.75, "y": 0.25}}


def test_the_order_of_options_does_not_tell_which_was_chosen(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "chosen": f"x{n}", "rejected": f"y{n}"} for n in range(200)]
    first = [question.shares[0] for question in import_preferences(written(tmp_path, rows), None)]
    assert 60 < sum(first) < 140


def test_conversations_whose_prompt_is_in_both_candidates_are_read(tmp_path: Path) -> None:
    def talk(answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "Shall we?"}, {"role": "assistant", "content": answer}]

    assert shares(written(tmp_path, [{"chosen": talk("yes"), "rejected": talk("no")}])) == {
        "Shall we?": {"yes": 1.0, "no": 0.0}
    }


@pytest.mark.parametrize("name", ["candidates", "responses", "completions", "options", "summaries"])
def test_best_of_n_with_votes_is_counted(tmp_path: Path, name: str) -> None:
    first = {"prompt": "p", name: ["x", "y", "z"], "votes": [1, 2, 1]}
    rows = [first, {"prompt": "p", name: ["z", "x", "y"], "votes": [4, 0, 0]}]
    assert shares(written(tmp_path, rows)) == {"p": {"x": 0.125, "y": 0.25, "z": 0.625}}


def test_a_summarization_set_with_votes_by_group_gives_each_group_its_own_file(tmp_path: Path) -> None:
    rows = [{"prompt": "post", "summaries": [{"text": "s"}, {"text": "t"}], "votes": {"a": [9, 1], "b": [2, 2]}}]
    path = written(tmp_path, rows)
    assert shares(path, "a") == {"post": {"s": 0.9, "t": 0.1}}
    assert shares(path, "b") == {"post": {"s": 0.5, "t": 0.5}}
    with pytest.raises(InvalidData, match=r"no group 'c'.*a, b"):
        import_preferences(path, "c")
    with pytest.raises(InvalidData, match="say whose"):
        import_preferences(path, None)


def test_a_csv_file_with_votes_as_text_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('prompt,chosen,rejected,votes\np,x,y,"[3, 1]"\nq,x,y,\n')
    assert shares(path) == {"p": {"x": 0.75, "y": 0.25}, "q": {"x": 1.0, "y": 0.0}}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "p"}, "no candidates"),
        ({"chosen": "x", "rejected": "y"}, "no prompt"),
        ({"prompt": "p", "chosen": "x", "rejected": "x"}, "text of its own"),
        ({"prompt": "p", "candidates": ["x"], "votes": [1]}, "at least 2"),
        ({"prompt": "p", "candidates": ["x", "y"], "votes": [1]}, "one number"),
        ({"prompt": "p", "candidates": ["x", "y"], "votes": [-1, 2]}, "0 or more"),
        ({"prompt": "p", "candidates": ["x", "y"], "votes": [0, 0]}, "nobody has voted"),
        ({"prompt": "p", "candidates": ["x", "y"], "votes": "many"}, "no list of numbers"),
        ({"prompt": "p", "candidates": ["x", "y"]}, "no votes"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_with_its_line(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    path = written(tmp_path, [{"prompt": "good", "chosen": "x", "rejected": "y"}, row])
    with pytest.raises(InvalidData, match=f"line 2: .*{told}"):
        import_preferences(path, None)


def test_candidates_without_votes_are_asked_in_the_rows_order() -> None:
    question, has_votes = candidates_of({"question": "p", "options": ["y", "x"], "scale": [1, 2]})
    assert (question.options, question.scale, has_votes) == (("y", "x"), (1, 2), False)
