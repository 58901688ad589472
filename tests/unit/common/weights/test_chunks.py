"""Files in chunks: sizes and digests near the ends of chunks, and downloads that go on where they broke off."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from pluralllm.common.errors.tree import Corrupt, DigestMismatch, OverLimit, WrongLayout
from pluralllm.common.weights.chunks import (
    CHUNK_BYTES,
    HASH_BYTES,
    HashingReader,
    HashingWriter,
    checked_manifest,
    digest_of,
    keep_good_chunks,
    manifest_of,
    missing_ranges,
)
from pluralllm.common.words.ids import Digest

SIZES = [1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 2 * CHUNK_BYTES + 5]


def content_of(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


def hashes_of(content: bytes) -> tuple[bytes, ...]:
    return tuple(
        hashlib.sha256(content[start : start + CHUNK_BYTES]).digest() for start in range(0, len(content), CHUNK_BYTES)
    )


def test_the_protocols_sizes() -> None:
    assert (CHUNK_BYTES, HASH_BYTES) == (1024 * 1024, 32)


@pytest.mark.parametrize("size", SIZES)
def test_a_manifest_has_one_hash_for_each_chunk_and_the_size_of_the_last_one(tmp_path: Path, size: int) -> None:
    content = content_of(size)
    (tmp_path / "blob").write_bytes(content)
    manifest = manifest_of(tmp_path / "blob")
    assert (manifest.size_bytes, manifest.chunk_hashes) == (size, hashes_of(content))
    assert manifest.digest == hashlib.sha256(b"".join(hashes_of(content))).hexdigest()
    assert manifest.chunks == -(-size // CHUNK_BYTES)
    sizes = [manifest.chunk_size(index) for index in range(manifest.chunks)]
    assert sum(sizes) == size
    assert all(piece == CHUNK_BYTES for piece in sizes[:-1])
    checked = checked_manifest(manifest.digest, size, CHUNK_BYTES, manifest.chunk_hashes, size)
    assert checked == manifest
    with pytest.raises(OverLimit, match="size_bytes"):
        checked_manifest(manifest.digest, size, CHUNK_BYTES, manifest.chunk_hashes, size - 1)


def test_a_manifest_from_the_network_is_checked_number_by_number() -> None:
    hashes = hashes_of(content_of(CHUNK_BYTES + 1))
    good = digest_of(hashes)
    for size in (0, -1):
        with pytest.raises(OverLimit, match="size_bytes"):
            checked_manifest(good, size, CHUNK_BYTES, hashes, 10)
    with pytest.raises(OverLimit) as refused:
        checked_manifest(good, 2 * CHUNK_BYTES + 1, CHUNK_BYTES, hashes, 2**30)
    assert (refused.value.got, refused.value.limit) == (2, 3)
    with pytest.raises(OverLimit):
        checked_manifest(good, CHUNK_BYTES, CHUNK_BYTES, hashes, 2**30)
    for length in (HASH_BYTES - 1, HASH_BYTES + 1):
        strange = (hashes[0], hashes[1][:length] + b"x" * (length - HASH_BYTES))
        with pytest.raises(OverLimit, match="hashes"):
            checked_manifest(digest_of(strange), CHUNK_BYTES + 1, CHUNK_BYTES, strange, 2**30)
    for chunk_bytes in (CHUNK_BYTES - 1, CHUNK_BYTES + 1):
        with pytest.raises(OverLimit, match="chunk_bytes"):
            checked_manifest(good, CHUNK_BYTES + 1, chunk_bytes, hashes, 2**30)
    with pytest.raises(DigestMismatch):
        checked_manifest(digest_of(hashes[::-1]), CHUNK_BYTES + 1, CHUNK_BYTES, hashes, 2**30)


@pytest.mark.parametrize(
    ("kept_bytes", "good"),
    [
        (0, 0),
        (CHUNK_BYTES - 1, 0),
        (CHUNK_BYTES, 1),
        (2 * CHUNK_BYTES + 4, 2),
        (2 * CHUNK_BYTES + 5, 3),
        (2 * CHUNK_BYTES + 9, 3),  # longer than the blob
    ],
)
def test_a_download_goes_on_after_its_last_good_chunk(tmp_path: Path, kept_bytes: int, good: int) -> None:
    content = content_of(2 * CHUNK_BYTES + 5)
    (tmp_path / "blob").write_bytes(content)
    partial = tmp_path / "part"
    if kept_bytes:
        partial.write_bytes((content + b"more")[:kept_bytes])
    assert keep_good_chunks(partial, manifest_of(tmp_path / "blob")) == good
    assert partial.read_bytes() == content[: good * CHUNK_BYTES]


def test_a_bad_chunk_takes_the_following_ones_with_it(tmp_path: Path) -> None:
    content = content_of(2 * CHUNK_BYTES + 5)
    (tmp_path / "blob").write_bytes(content)
    partial = tmp_path / "part"
    partial.write_bytes(content[:CHUNK_BYTES] + b"?" + content[CHUNK_BYTES + 1 :])
    assert keep_good_chunks(partial, manifest_of(tmp_path / "blob")) == 1
    assert partial.read_bytes() == content[:CHUNK_BYTES]


@pytest.mark.parametrize(
    ("missing", "ranges"),
    [([], ()), ([4], ((4, 4),)), ([3, 1, 2], ((1, 3),)), ([0, 2, 3, 5], ((0, 0), (2, 3), (5, 5)))],
)
def test_missing_chunks_are_named_as_ranges(missing: list[int], ranges: tuple[tuple[int, int], ...]) -> None:
    assert missing_ranges(missing) == ranges


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("piece", [CHUNK_BYTES // 2 + 3, CHUNK_BYTES, 3 * CHUNK_BYTES])
def test_a_file_written_in_any_pieces_has_the_manifest_of_its_content(tmp_path: Path, size: int, piece: int) -> None:
    content, path = content_of(size), tmp_path / "blob"
    with HashingWriter(path, size) as writer:
        writer.write(b"")
        for start in range(0, size, piece):
            writer.write(content[start : start + piece])
        manifest = writer.finish()
    assert path.read_bytes() == content
    assert manifest == manifest_of(path)


def test_files_are_whole_when_they_are_finished_and_closed_in_any_case(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    with HashingWriter(path, 4) as writer:
        writer.write(np.empty(0, "<f4").data)
        writer.write(np.ones(1, "<f4").data)
        writer.finish()
        assert path.read_bytes() == np.ones(1, "<f4").tobytes()
    with HashingWriter(path, 4) as writer:
        pass
    with HashingReader(path) as reader:
        pass
    assert writer._file.closed
    assert reader._file.closed


@pytest.mark.parametrize("promised", [9, 11])
def test_a_file_of_another_size_than_promised_is_an_error(tmp_path: Path, promised: int) -> None:
    with HashingWriter(tmp_path / "blob", promised) as writer:
        writer.write(b"x" * 10)
        with pytest.raises(WrongLayout, match=f"10 bytes were written, the layout has {promised}"):
            writer.finish()


def test_an_array_is_written_byte_by_byte(tmp_path: Path) -> None:
    values = np.arange(5, dtype="<f4")
    with HashingWriter(tmp_path / "blob", 20) as writer:
        writer.write(values.data)
        writer.finish()
    assert (tmp_path / "blob").read_bytes() == values.tobytes()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("piece", [CHUNK_BYTES // 2 + 3, CHUNK_BYTES, 3 * CHUNK_BYTES])
def test_a_file_read_in_any_pieces_is_checked_against_its_digest(tmp_path: Path, size: int, piece: int) -> None:
    content, path = content_of(size), tmp_path / "blob"
    path.write_bytes(content)
    read = np.empty(size, np.uint8)
    with HashingReader(path, manifest_of(path).digest) as reader:
        for start in range(0, size, piece):
            reader.read_into(read[start : start + piece])
        reader.check()
        with pytest.raises(Corrupt, match="more bytes"):
            reader.read_into(np.empty(1, np.uint8))
    assert read.tobytes() == content
    with HashingReader(path, Digest("0" * 64)) as reader:
        reader.read_into(np.empty(size, np.uint8))
        with pytest.raises(Corrupt, match="stored weights blob"):
            reader.check()
    with HashingReader(path) as reader:
        reader.read_into(np.empty(size, np.uint8))
        reader.check()  # nothing is expected


def test_a_file_with_more_bytes_than_were_read_has_another_digest(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(content_of(10))
    with HashingReader(path, manifest_of(path).digest) as reader:
        reader.read_into(np.empty(9, np.uint8))
        with pytest.raises(Corrupt):
            reader.check()
