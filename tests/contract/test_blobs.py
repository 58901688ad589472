"""The contract of every blob store."""

import os
import time
from pathlib import Path

import pytest
from obstore.store import MemoryStore
from support.real_stores import S3

from pluralllm.common.errors.tree import Corrupt, InvalidConfig, NotFound, StoreFailed
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.words.ids import Digest
from pluralllm.server.storage.blobs import SPARED_S, Blobs, LocalBlobs, verify
from pluralllm.server.storage.object_blobs import ObjectBlobs, open_bucket


@pytest.fixture(params=["files", "memory", pytest.param("s3", marks=pytest.mark.seconds)])
def blobs(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Blobs:
    (tmp_path / "blobs").mkdir()
    local = LocalBlobs(tmp_path / "blobs")
    if request.param == "files":
        return local
    if request.param == "memory":
        return ObjectBlobs(MemoryStore(), local, tmp_path, 1_000_000)
    return in_bucket(request.getfixturevalue("s3"), tmp_path, monkeypatch)


def in_bucket(s3: S3, folder: Path, monkeypatch: pytest.MonkeyPatch, kept_bytes: int = 1_000_000) -> ObjectBlobs:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return ObjectBlobs(open_bucket(s3.new_bucket(), s3.endpoint), LocalBlobs(folder / "blobs"), folder, kept_bytes)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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


@pytest.mark.seconds
async def test_a_blob_without_a_local_copy_is_fetched_and_verified(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "blobs").mkdir()
    blobs = in_bucket(s3, tmp_path, monkeypatch)
    content = os.urandom(20_000_000)  # more than one part of an upload
    path, digest = draft(tmp_path, content)
    await blobs.put(digest, path)
    (await blobs.path(digest)).unlink()
    assert (await blobs.path(digest)).read_bytes() == content
    assert names(tmp_path) == ["blobs"]


async def test_a_blob_that_was_spoilt_in_the_bucket_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    bucket = MemoryStore()
    blobs = ObjectBlobs(bucket, LocalBlobs(tmp_path / "blobs"), tmp_path, 1_000_000)
    path, digest = draft(tmp_path, b"weights")
    await blobs.put(digest, path)
    (await blobs.path(digest)).unlink()
    bucket.put(digest, b"weightz")
    with pytest.raises(Corrupt, match=digest):
        await blobs.path(digest)
    assert names(tmp_path) == ["blobs"]


async def test_local_copies_go_when_they_grow_too_large_and_were_not_used_lately(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    local = LocalBlobs(tmp_path / "blobs")
    blobs = ObjectBlobs(MemoryStore(), local, tmp_path, 1_000)
    old, other, lately = [draft(tmp_path, bytes([number]) * 400)[1] for number in range(3)]
    for number, digest in enumerate((old, other, lately)):
        path, _ = draft(tmp_path, bytes([number]) * 400)
        await local.put(digest, path)
    long_ago_s = time.time() - SPARED_S - 10
    for age_s, digest in enumerate((other, old)):
        os.utime(await local.path(digest), (long_ago_s - age_s, long_ago_s - age_s))
    path, newest = draft(tmp_path, b"n" * 400)
    await blobs.put(newest, path)
    # The two old ones alone would not have made enough space.
    assert sorted(await local.digests()) == sorted([lately, newest])


@pytest.mark.seconds
async def test_a_bucket_that_is_not_there_is_said_not_to_be(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    path, digest = draft(tmp_path, b"weights")
    nowhere = ObjectBlobs(open_bucket("s3://nowhere/x", s3.endpoint), LocalBlobs(tmp_path), tmp_path, 1_000)
    with pytest.raises(StoreFailed, match="bucket"):
        await nowhere.put(digest, path)
    assert path.exists()


def test_a_url_of_no_store_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="blob_url"):
        open_bucket("ftp://somewhere/x", None)
