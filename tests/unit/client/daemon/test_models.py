"""The folder of downloaded models keeps a few files, also when each download breaks off."""

from pathlib import Path
from typing import Any

import pytest

from pluralllm.client.daemon.models import KEPT, Models
from pluralllm.common.errors.tree import Corrupt


class History:
    """A history that admits every version."""

    async def follow(self, *_: object) -> None: ...


class BrokenTransport:
    """A transport whose downloads all break off and leave a partial file."""

    version_records = None

    async def fetch_model(self, run: str, version: int, digest: str, size_bytes: int, target: Path) -> None:
        target.with_suffix(".part").write_bytes(b"0")
        raise Corrupt(what="a", expected="b", got="c")


async def test_downloads_that_break_off_leave_a_few_files(tmp_path: Path) -> None:
    class Task:
        run, base_version, base_digest = "r", 0, ""

    history: Any = History()
    transport: Any = BrokenTransport()
    task: Any = Task()
    spec: Any = None
    models = Models(tmp_path / "models", history, transport)
    for number in range(9):
        task.base_digest = f"{number:064x}"
        with pytest.raises(Corrupt):
            await models.fetch(task, 1, spec)
        assert (tmp_path / "models" / f"{task.base_digest}.part").is_file()
    assert len(list((tmp_path / "models").iterdir())) <= KEPT + 1
    Models(tmp_path / "models", history, transport)
    assert len(list((tmp_path / "models").iterdir())) <= KEPT
