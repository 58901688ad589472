"""What every blob store must do."""

from pathlib import Path

import pytest

from pluralllm.common.chunks import manifest_of
from pluralllm.common.errors import Corrupt, NotFound
from pluralllm.common.ids import Digest
from pluralllm.server.blobs import Blobs, LocalBlobs, verify


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    (tmp_path / "blobs").mkdir()
    return LocalBlobs(tmp_path / "blobs")


def draft(folder: Path, content: bytes) -> tuple[Path, Digest]:
    path = folder / "draft"
    path.write_bytes(content)
    return path, manifest_of(path).digest


async def test_a_blob_is_taken_over_and_read_again(blobs: Blobs, tmp_path: Path) -> None:
    path, digest = draft(tmp_path, b"weights")
    assert not await blobs.exists(digest)
    await blobs.put(digest, path)
    assert (await blobs.path(digest)).read_bytes() == b"weights"
    assert await blobs.exists(digest)
    assert not path.exists()
    assert await blobs.digests() == [digest]


async def test_putting_twice_is_free(blobs: Blobs, tmp_path: Path) -> None:
    for _ in range(2):
        path, digest = draft(tmp_path, b"weights")
        await blobs.put(digest, path)
    assert await blobs.digests() == [digest]


async def test_a_deleted_blob_is_gone_and_deleting_again_is_free(blobs: Blobs, tmp_path: Path) -> None:
    path, digest = draft(tmp_path, b"weights")
    await blobs.put(digest, path)
    for _ in range(2):
        await blobs.delete(digest)
    with pytest.raises(NotFound):
        await blobs.path(digest)


async def test_a_flipped_bit_is_found(blobs: Blobs, tmp_path: Path) -> None:
    path, digest = draft(tmp_path, b"weights")
    await blobs.put(digest, path)
    stored = await blobs.path(digest)
    verify(stored, digest)
    stored.write_bytes(b"weightz")
    with pytest.raises(Corrupt, match=digest):
        verify(stored, digest)
