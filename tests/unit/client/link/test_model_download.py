"""A download writes verified chunks in order, and resumes where an earlier attempt ended."""

from pathlib import Path

import pytest

from pluralllm.client.link.model_download import ModelDownload, stream_deadline_s
from pluralllm.common.errors.tree import Corrupt
from pluralllm.common.weights.chunks import CHUNK_BYTES, Manifest, manifest_of
from pluralllm.common.weights.pieces import SLOWEST_LINK_BYTES_S

CHUNKS = (b"a" * CHUNK_BYTES, b"b" * CHUNK_BYTES, b"end")


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    (tmp_path / "model").write_bytes(b"".join(CHUNKS))
    return manifest_of(tmp_path / "model")


def test_a_download_that_broke_off_goes_on_after_the_last_good_chunk(tmp_path: Path, manifest: Manifest) -> None:
    draft, target = tmp_path / "draft", tmp_path / "target"
    first_try = ModelDownload("the model", manifest, draft)
    with first_try.writing():
        first_try.write(0, CHUNKS[0])
    draft.write_bytes(draft.read_bytes() + b"half a chunk")
    second_try = ModelDownload("the model", manifest, draft)
    assert (second_try.next_chunk, second_try.size_bytes) == (1, CHUNK_BYTES)
    with second_try.writing():
        second_try.write(1, memoryview(CHUNKS[1]))
        second_try.write(2, CHUNKS[2])
    assert second_try.is_complete
    second_try.publish(target)
    assert manifest_of(target) == manifest
    assert not draft.exists()


@pytest.mark.parametrize(
    ("written", "index", "chunk"),
    [(0, 0, CHUNKS[1]), (0, 1, CHUNKS[1]), (1, 0, CHUNKS[0]), (2, 2, b"other"), (3, 3, b"more"), (3, 2, CHUNKS[2])],
    ids=["other bytes", "a chunk too early", "a chunk twice", "a longer end", "a chunk after the end", "the end twice"],
)
def test_a_chunk_that_is_not_the_next_one_is_refused_and_not_written(
    tmp_path: Path, manifest: Manifest, written: int, index: int, chunk: bytes
) -> None:
    download = ModelDownload("version 3", manifest, tmp_path / "draft")
    with download.writing():
        for number in range(written):
            download.write(number, CHUNKS[number])
        with pytest.raises(Corrupt, match=f"chunk {index} of version 3"):
            download.write(index, chunk)
    assert (tmp_path / "draft").read_bytes() == b"".join(CHUNKS[:written])


def test_the_deadline_of_a_stream_grows_with_the_model(manifest: Manifest) -> None:
    assert stream_deadline_s(manifest) == 60 + manifest.size_bytes / SLOWEST_LINK_BYTES_S


def test_a_chunk_that_arrives_in_pieces_is_written_when_it_is_complete(tmp_path: Path, manifest: Manifest) -> None:
    download = ModelDownload("version 3", manifest, tmp_path / "draft")
    with download.writing():
        download.write(0, CHUNKS[0][:1000], more=True)
        assert download.next_chunk == 0
        download.write(0, CHUNKS[0][1000:])
        assert download.next_chunk == 1


def test_pieces_that_are_more_than_a_chunk_are_refused(tmp_path: Path, manifest: Manifest) -> None:
    download = ModelDownload("version 3", manifest, tmp_path / "draft")
    with download.writing():
        download.write(0, CHUNKS[0], more=True)
        with pytest.raises(Corrupt, match="chunk 0 of version 3"):
            download.write(0, b"x", more=True)
