"""The file that `invite` writes replaces an older invite, and nothing else; `page` prints a link and nothing else."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from pluralllm.cli import member_commands
from pluralllm.cli.member_commands import _check_replaceable, page
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


def test_page_prints_the_link_alone_so_that_a_program_can_open_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    link = f"https://x.example:7447/enter#{'t' * 43}"
    monkeypatch.setattr(member_commands, "remote", lambda _: SimpleNamespace(page_link=lambda: link))
    page()
    assert capsys.readouterr().out == f"{link}\n"
    page(as_json=True)
    assert json.loads(capsys.readouterr().out) == {"schema": "pluralllm.page-link/1", "link": link}
