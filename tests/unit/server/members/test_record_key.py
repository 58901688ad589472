"""The record key: init makes it, an older authority gets it at its start, and a damaged one is never replaced."""

from pathlib import Path

import pytest

from pluralllm.common.errors.tree import InvalidConfig
from pluralllm.common.trust.certificates import key_to_pem
from pluralllm.server.commands.backup import copy_authority
from pluralllm.server.members.authority import create_authority
from pluralllm.server.members.record_key import RECORD_KEY, record_key_of

NOW_S = 1_800_000_000.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create_authority(tmp_path / "authority", "fed", ["fl.example.org"], None, NOW_S)
    return tmp_path / "authority"


def test_a_new_authority_has_its_key_which_stays(folder: Path) -> None:
    before = (folder / RECORD_KEY).read_bytes()
    assert key_to_pem(record_key_of(folder)) == before
    assert (folder / RECORD_KEY).read_bytes() == before


def test_an_authority_of_an_older_release_gets_its_key_once(folder: Path) -> None:
    (folder / RECORD_KEY).unlink()
    made = key_to_pem(record_key_of(folder))
    assert key_to_pem(record_key_of(folder)) == made == (folder / RECORD_KEY).read_bytes()
    assert (folder / RECORD_KEY).stat().st_mode & 0o777 == 0o600


def test_a_damaged_key_is_reported_and_kept(folder: Path) -> None:
    (folder / RECORD_KEY).write_bytes(b"damaged")
    with pytest.raises(InvalidConfig, match="backup"):
        record_key_of(folder)
    assert (folder / RECORD_KEY).read_bytes() == b"damaged"


def test_the_key_is_in_a_backup(folder: Path, tmp_path: Path) -> None:
    copy_authority(folder, tmp_path / "copy")
    assert key_to_pem(record_key_of(tmp_path / "copy")) == (folder / RECORD_KEY).read_bytes()
