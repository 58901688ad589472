"""The folder of downloaded models keeps a few files, also when each download breaks off."""

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from pluralllm.client.daemon.models import KEPT, Models
from pluralllm.common.errors.tree import Corrupt
from pluralllm.common.weights.chunks import manifest_of

MODEL = b"weights"


class History:
    """A history that admits every version."""

    async def follow(self, *_: object) -> None: ...


class GoodTransport:
    """A transport that downloads a model if the file is not there."""

    version_records = None

    def __init__(self) -> None:
        self.downloads = 0

    async def fetch_model(self, run: str, version: int, digest: str, size_bytes: int, target: Path) -> None:
        self.downloads += await asyncio.to_thread(_write_if_absent, target)


def _write_if_absent(target: Path) -> bool:
    is_absent = not target.is_file()
    if is_absent:
        target.write_bytes(MODEL)
    return is_absent


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


async def test_a_model_that_was_damaged_on_this_disk_is_downloaded_again_and_a_good_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(MODEL)

    class Task:
        run, base_version, base_digest = "r", 0, manifest_of(tmp_path / "model").digest

    history: Any = History()
    good, task, spec = GoodTransport(), cast(Any, Task()), cast(Any, None)
    models = Models(tmp_path / "models", history, cast(Any, good))
    path = await models.fetch(task, 1, spec)
    assert await models.fetch(task, 1, spec) == path
    assert good.downloads == 1
    path.write_bytes(b"weighty")
    with capture_logs() as logs:
        assert (await models.fetch(task, 1, spec)).read_bytes() == MODEL
    assert (good.downloads, [line["event"] for line in logs]) == (2, ["model.damaged"])
