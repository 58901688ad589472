"""Scoring a file: a row that cannot be used costs no other row, and nothing is computed for a place that cannot be written."""

from pathlib import Path
from typing import Any

import pytest

from pluralllm.align.group_reward import _folder_of
from pluralllm.align.scoring import _line, score_rows
from pluralllm.common.errors.tree import InvalidArgument

NOT_USED: Any = None


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (rb'{"prompt": "\ud83d", "options": ["a", "b"]}', "half a character"),
        (b"[" * 100_000, "nested too deep"),
        (b"\xff", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"prompt": "Q", "chosen": "a", "rejected": "b", "weight": [1]}', "float"),
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

        def predict(self, _: object) -> None:
            raise ending

    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "Q", "options": ["a", "b"]}\n')
    out.write_text("old")
    reward: Any = Breaking()
    with pytest.raises(ending):
        score_rows(reward, source, out, lambda _: None)
    assert (out.read_text(), sorted(tmp_path.iterdir())) == ("old", [source, out])
