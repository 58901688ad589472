"""After a disk has failed, no incomplete write is trusted, and the server refuses every call."""

import asyncio
import errno
from pathlib import Path

import pytest

from pluralllm.common.errors.tree import Corrupt, DiskFailed, StorageFull
from pluralllm.common.process import files
from pluralllm.common.weights.chunks import CHUNK_BYTES, manifest_of
from pluralllm.server.process.fail_stop import FailStop
from pluralllm.server.storage.model_chunks import ModelChunks


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_file_whose_fsync_failed_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def failing(path: Path) -> None:
        raise OSError(code, "told once")

    source, target = tmp_path / "draft", tmp_path / "final"
    source.write_bytes(b"perhaps lost")
    monkeypatch.setattr(files, "sync_file", failing)
    with pytest.raises(OSError, match="told once"):
        files.publish(source, target)
    assert not source.exists()
    assert not target.exists()


async def test_the_first_failure_of_a_disk_ends_it_all() -> None:
    fail_stop = FailStop()
    waiting = asyncio.create_task(fail_stop.stopped())
    assert fail_stop.disk_failure(OSError(errno.ENOSPC, "full")) is None
    assert fail_stop.disk_failure(StorageFull(what="an update")) is None
    assert fail_stop.why is None
    first = fail_stop.disk_failure(OSError(errno.EIO, "Input/output error"))
    fail_stop.disk_failure(OSError(errno.EROFS, "Read-only file system"))
    assert isinstance(first, DiskFailed)
    assert await asyncio.wait_for(waiting, 5) is first


async def test_a_spoilt_model_is_not_sent_and_one_that_was_restored_is(tmp_path: Path) -> None:
    path, content = tmp_path / "model", bytes(range(256)) * (CHUNK_BYTES // 256) + b"the second chunk"
    path.write_bytes(content)
    manifest, chunks = manifest_of(path), ModelChunks()
    path.write_bytes(content[:-1] + b"?")
    with pytest.raises(Corrupt, match="chunk 1 of the model"):
        await chunks.message(path, manifest, 0)
    path.write_bytes(content)
    assert content[-16:] in await chunks.message(path, manifest, 1)
