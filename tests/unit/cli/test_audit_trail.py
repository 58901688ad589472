"""The head of the audit log that this machine keeps: a file that cannot be written or read hides no verified entry."""

from pathlib import Path
from typing import Any

import pytest

from pluralllm.cli import audit_trail
from pluralllm.cli.audit_trail import verified_entries
from pluralllm.common.errors.tree import InvalidConfig
from pluralllm.common.trust.audit_chain import FIRST_PREVIOUS


class Remote:
    """A coordinator whose audit log is empty."""

    def audit_events(self) -> tuple[list[dict[str, Any]], bool]:
        return [], True


EMPTY: Any = Remote()


def test_a_head_that_cannot_be_kept_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read_only(path: Path, _content: bytes) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(audit_trail, "write_durably", read_only)
    assert verified_entries(EMPTY, tmp_path) == ([], FIRST_PREVIOUS, True)
    assert "Read-only file system" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", "{}", '{"sequence": "x"}', "5"])
def test_a_damaged_head_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "audit-head.json").write_text(content)
    with pytest.raises(InvalidConfig, match=r"audit-head.json[^ ]* .*\n  it is damaged"):
        verified_entries(EMPTY, tmp_path)
