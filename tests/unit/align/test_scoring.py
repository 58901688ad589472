"""Scoring a file: a row that cannot be used costs no other row, and nothing is computed for a place that cannot be written."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pluralllm.align.group_reward import _folder_of, identity_of
from pluralllm.align.rollouts import Scored
from pluralllm.align.scoring import _line, score_rows, write_pairs
from pluralllm.common.errors.tree import InvalidArgument, InvalidData
from pluralllm.common.predictor.group_predictor import PredictedAnswer
from pluralllm.common.process.exits import exit_code_of
from pluralllm.common.words.questions import Question

NOT_USED: Any = None


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (rb'{"prompt": "\ud83d", "options": ["a", "b"]}', "half a character"),
        (b"[" * 100_000, "nested too deep"),
        (b"\xff", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"prompt": "Q", "chosen": "a", "rejected": "b", "weight": [1]}', "float"),
        (b'{"prompt": "Q", "options": ["a", "b"], "completion": null}', "completion is a NoneType"),
        (b'{"prompt": "Q", "options": ["a", "b"], "completion": ["a"]}', "list of messages"),
    ],
)
def test_a_row_that_cannot_be_used_has_a_problem(raw: bytes, problem: str) -> None:
    line = _line(raw)
    assert line.question is None
    assert problem in line.problem


def test_a_folder_in_the_place_of_the_output_is_named_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="is a folder"):
        score_rows(NOT_USED, tmp_path / "in.jsonl", tmp_path, lambda _: None)


def test_a_cache_in_a_home_that_is_not_known_is_named() -> None:
    with pytest.raises(InvalidArgument, match="cache"):
        _folder_of("~nobody-of-this-name/cache")


@pytest.mark.parametrize("ending", [KeyboardInterrupt, MemoryError])
def test_scoring_that_breaks_off_leaves_the_output_as_it_was_and_no_part(
    ending: type[BaseException], tmp_path: Path
) -> None:
    class Breaking:
        only_group = "g"

        def context_of(self, _: str) -> frozenset[Any]:
            return frozenset()

        def predict(self, _: object) -> None:
            raise ending

    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "Q", "options": ["a", "b"]}\n')
    out.write_text("old")
    reward: Any = Breaking()
    with pytest.raises(ending):
        score_rows(reward, source, out, lambda _: None)
    assert (out.read_text(), sorted(tmp_path.iterdir())) == ("old", [source, out])


class Even:
    """A reward that predicts equal shares, and whose context has one question."""

    only_group = "g"

    def context_of(self, group: str) -> frozenset[Any]:
        assert group == "g"
        return frozenset({identity_of(Question("Known?", ("Yes", "No"), (0.9, 0.1)))})

    def predict(self, keys: Sequence[tuple[str, Question]]) -> dict[Any, PredictedAnswer]:
        return {key: PredictedAnswer(*[np.full(len(key[1].options), 1 / len(key[1].options))] * 3) for key in keys}

    def score(self, prompts: Sequence[str], *_: object, **__: object) -> list[Scored | None]:
        return [Scored(0.5, 0.0) for _ in prompts]


def test_rows_of_the_context_are_scored_and_left_out_of_the_alignment_score(tmp_path: Path) -> None:
    reward: Any = Even()
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [
        {"question": "known?", "options": ["No", "Yes"], "shares": [0.1, 0.9]},
        {"question": "New?", "options": ["Yes", "No"], "shares": [0.5, 0.5]},
        {"question": "New?", "options": ["Yes", "No"], "completion": {"text": 7}},
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = score_rows(reward, source, out, lambda _: None)
    assert (summary["rows_of_context"], summary["alignment_score"]) == (1, pytest.approx(1.0))
    assert (summary["rows"], summary["not_scored"]) == (3, 1)
    problems = [json.loads(line).get("problem") for line in out.read_text().splitlines()]
    assert problems[:2] == [None, None]
    assert "completion" in problems[2]


@pytest.mark.parametrize("content", [b"PAR1\x15\x04\x15\n\x00", b"", b'{"a": 1}\n{"a": 2}\n'])
@pytest.mark.parametrize("command", [score_rows, partial(write_pairs, margin=0.0, every=False)])
def test_a_file_without_a_row_that_can_be_scored_is_refused_and_nothing_is_written(
    content: bytes, command: Any, tmp_path: Path
) -> None:
    reward: Any = Even()
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(content)
    with pytest.raises(InvalidData, match=r"none of|no rows") as refused:
        command(reward, source, out, seen=lambda _: None)
    assert exit_code_of(type(refused.value)) == 3
    assert sorted(tmp_path.iterdir()) == [source]


ODD_ROWS = [
    {"votes": [10**400, 1]},
    {"weight": {}, "chosen": "a", "rejected": "b"},
    {"options": {"a": 1}},
    {"options": ["a", None]},
    {"prompt": None},
    {"votes": {"other": 3}},
    {"shares": ["x", "y"]},
    {"scale": [[1], 2]},
    {"completion": []},
]


@pytest.mark.parametrize("odd", ODD_ROWS, ids=map(str, range(len(ODD_ROWS))))
def test_an_odd_row_costs_no_other_row(odd: dict[str, Any], tmp_path: Path) -> None:
    reward: Any = Even()
    good = {"prompt": "New?", "options": ["Yes", "No"], "votes": [3, 1], "completion": "Yes"}
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in [good, good | odd, good]))
    summary = score_rows(reward, source, out, lambda _: None)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert (summary["rows"], len(rows)) == (3, 3)
    assert rows[0]["reward"] == rows[2]["reward"] == 0.5
    assert rows[1].get("problem") or rows[1]["predicted_shares"] is not None
