"""The file that `invite` writes replaces an older invite, and nothing else."""

import os
from pathlib import Path

import pytest

from pluralllm.cli.member_commands import _check_replaceable
from pluralllm.common.errors.tree import InvalidArgument


@pytest.mark.parametrize("content", ["5", "[]", '"pluralllm_invite"', "", "\x00"])
def test_a_file_that_is_no_invite_is_not_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / "ann.invite").write_text(content)
    with pytest.raises(InvalidArgument, match="is there and is no invite"):
        _check_replaceable(tmp_path / "ann.invite")


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ann.invite")
    with pytest.raises(InvalidArgument, match="is there and is no invite"):
        _check_replaceable(tmp_path / "ann.invite")
