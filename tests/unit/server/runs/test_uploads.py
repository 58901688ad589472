"""Updates are uploaded chunk by chunk, in any order, with restarts between."""

import asyncio
import errno
import hashlib
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pluralllm.server.runs.uploads
from pluralllm.common.errors.tree import ChunksMissing, DigestMismatch, OverLimit
from pluralllm.common.weights.chunks import CHUNK_BYTES, Manifest, digest_of, manifest_of
from pluralllm.server.runs.uploads import Uploads

CHUNKS = 4


def blob(folder: Path, seed: int = 1) -> tuple[bytes, Manifest]:
    content = b"".join(bytes([seed + index]) * CHUNK_BYTES for index in range(CHUNKS))[: -CHUNK_BYTES // 2]
    (folder / "blob").write_bytes(content)
    return content, manifest_of(folder / "blob")


def chunk(content: bytes, index: int) -> bytes:
    return content[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, CHUNKS - 1) | st.just("restart"), max_size=12))
def test_any_order_with_restarts_leaves_exactly_what_was_not_sent(steps: list[int | str]) -> None:
    async def play(folder: Path) -> None:
        content, manifest = blob(folder)
        (folder / "up").mkdir()
        uploads = Uploads(folder / "up")
        sent: set[int] = set()
        assert await uploads.begin("u", manifest) == frozenset(range(CHUNKS))
        for step in steps:
            if isinstance(step, int):
                await uploads.put("u", step, chunk(content, step))
                sent.add(step)
            else:
                uploads = Uploads(folder / "up")
                assert await uploads.begin("u", manifest) == frozenset(range(CHUNKS)) - sent
        for index in range(CHUNKS):
            await uploads.put("u", index, chunk(content, index))
        assert (await uploads.finish("u")).read_bytes() == content

    with tempfile.TemporaryDirectory() as name:
        asyncio.run(play(Path(name)))


async def test_a_garbled_or_short_chunk_is_refused_and_still_missing(tmp_path: Path) -> None:
    content, manifest = blob(tmp_path)
    uploads = Uploads(tmp_path)
    await uploads.begin("u", manifest)
    with pytest.raises(DigestMismatch):
        await uploads.put("u", 1, chunk(content, 2))
    with pytest.raises(OverLimit):
        await uploads.put("u", 1, chunk(content, 1)[:-1])
    with pytest.raises(OverLimit):
        await uploads.put("u", CHUNKS, b"x")
    assert await uploads.missing("u") == frozenset(range(CHUNKS))
    with pytest.raises(ChunksMissing):
        await uploads.finish("u")


async def test_bytes_lost_on_disk_are_missing_again_after_a_restart(tmp_path: Path) -> None:
    content, manifest = blob(tmp_path)
    uploads = Uploads(tmp_path)
    await uploads.begin("u", manifest)
    for index in range(CHUNKS):
        await uploads.put("u", index, chunk(content, index))
    with (tmp_path / "u.part").open("r+b") as file:
        file.seek(2 * CHUNK_BYTES + 7)
        file.write(b"\0")
    assert await Uploads(tmp_path).begin("u", manifest) == frozenset({2})


async def test_another_update_under_the_same_key_starts_afresh(tmp_path: Path) -> None:
    content, manifest = blob(tmp_path)
    uploads = Uploads(tmp_path)
    await uploads.begin("u", manifest)
    await uploads.put("u", 0, chunk(content, 0))
    _, other = blob(tmp_path, seed=50)
    assert await uploads.begin("u", other) == frozenset(range(CHUNKS))


async def test_a_sweep_drops_all_but_what_is_kept(tmp_path: Path) -> None:
    _, manifest = blob(tmp_path)
    uploads = Uploads(tmp_path)
    for key in ("a", "b"):
        await uploads.begin(key, manifest)
    await uploads.sweep({"b"})
    assert (tmp_path / "b.part").exists()
    assert not (tmp_path / "a.part").exists()
    with pytest.raises(ChunksMissing):
        await uploads.missing("a")


async def test_two_streams_may_fill_one_upload_at_once(tmp_path: Path) -> None:
    content, manifest = blob(tmp_path)
    uploads = Uploads(tmp_path)
    await asyncio.gather(*(uploads.begin("u", manifest) for _ in range(3)))
    await asyncio.gather(
        *(uploads.put("u", index, chunk(content, index)) for index in [*range(CHUNKS), *range(CHUNKS)])
    )
    assert (await uploads.finish("u")).read_bytes() == content


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, CHUNKS - 1), st.integers(0, 3)), max_size=12))
def test_callers_that_hang_up_and_change_their_mind_leave_no_mixture(steps: list[tuple[bool, int, int]]) -> None:
    async def play(folder: Path) -> None:
        updates = [blob(folder, seed) for seed in (1, 50)]
        uploads = Uploads(folder)
        for second, index, yields in steps:
            content, manifest = updates[second]
            calls = [
                asyncio.ensure_future(uploads.begin("u", manifest)),
                asyncio.ensure_future(uploads.put("u", index, chunk(content, index))),
            ]
            for _ in range(yields):
                await asyncio.sleep(0)
            for call in calls:
                call.cancel()
        content, manifest = updates[0]
        for index in await uploads.begin("u", manifest):
            await uploads.put("u", index, chunk(content, index))
        assert (await uploads.finish("u")).read_bytes() == content

    with tempfile.TemporaryDirectory() as name:
        asyncio.run(play(Path(name)))


async def test_an_update_whose_file_was_taken_over_is_announced_and_sent_again(tmp_path: Path) -> None:
    content, manifest = blob(tmp_path)
    uploads = Uploads(tmp_path)
    await uploads.begin("u", manifest)
    for index in range(CHUNKS):
        await uploads.put("u", index, chunk(content, index))
    (await uploads.finish("u")).rename(tmp_path / "taken")
    with pytest.raises(ChunksMissing):
        await uploads.finish("u")
    assert await uploads.begin("u", manifest) == frozenset(range(CHUNKS))
    await uploads.put("u", 0, chunk(content, 0))
    assert (tmp_path / "taken").read_bytes() == content


async def test_a_chunk_of_zeros_need_not_be_sent_again_after_a_restart(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"\1" * CHUNK_BYTES + bytes(CHUNK_BYTES))
    manifest = manifest_of(tmp_path / "blob")
    await Uploads(tmp_path).begin("u", manifest)
    assert await Uploads(tmp_path).begin("u", manifest) == frozenset({0})


async def test_a_chunk_that_the_system_writes_in_pieces_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, manifest = blob(tmp_path)
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, data, offset: write(handle, data[:300_000], offset))
    uploads = Uploads(tmp_path)
    await uploads.begin("u", manifest)
    for index in range(CHUNKS):
        await uploads.put("u", index, chunk(content, index))
    assert (await uploads.finish("u")).read_bytes() == content


async def test_a_sender_cannot_make_chunks_of_another_size_by_choosing_their_hash(tmp_path: Path) -> None:
    """The sender makes the manifest's hashes; one over a short chunk would leave a hole in a blob that counts as complete."""
    short = b"x" * 10
    hashes = (hashlib.sha256(short).digest(), hashlib.sha256(short).digest())
    manifest = Manifest(digest_of(hashes), CHUNK_BYTES + 20, hashes)
    uploads = Uploads(tmp_path)
    await uploads.begin("u", manifest)
    for index in (0, 1):
        with pytest.raises(OverLimit):
            await uploads.put("u", index, short)


async def test_nothing_is_remembered_of_uploads_that_are_over(tmp_path: Path) -> None:
    _, manifest = blob(tmp_path)
    uploads = Uploads(tmp_path)
    for number in range(5):
        await uploads.begin(f"u{number}", manifest)
        await uploads.drop(f"u{number}")
    with pytest.raises(ChunksMissing):
        await uploads.put("never begun", 0, b"x")
    assert not uploads._open
    assert not any((tmp_path / f"u{number}.part").exists() for number in range(5))


async def test_a_disk_that_fails_while_chunks_come_costs_the_upload_and_never_its_durability(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system reports a failed write only once: a file whose error was reported early must not pass as good at the end."""
    content, manifest = blob(tmp_path)
    uploads = Uploads(tmp_path / "up")
    (tmp_path / "up").mkdir()
    monkeypatch.setattr(pluralllm.server.runs.uploads, "FLUSH_BYTES", CHUNK_BYTES)
    seen: list[Path] = []

    def fails(path: Path) -> None:
        seen.append(path)
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(pluralllm.server.runs.uploads, "sync_data", fails)
    await uploads.begin("u", manifest)
    for index in range(CHUNKS):
        await uploads.put("u", index, chunk(content, index))
    with pytest.raises(ChunksMissing):
        await uploads.finish("u")
    assert seen
    monkeypatch.undo()
    assert await uploads.begin("u", manifest) == frozenset(range(CHUNKS))
    for index in range(CHUNKS):
        await uploads.put("u", index, chunk(content, index))
    assert (await uploads.finish("u")).read_bytes() == content


async def test_a_sync_that_could_not_even_start_counts_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a thread nothing is synced, although no sync has failed."""
    content, manifest = blob(tmp_path)
    uploads = Uploads(tmp_path)
    await uploads.begin("u", manifest)
    monkeypatch.setattr(pluralllm.server.runs.uploads, "FLUSH_BYTES", 1)

    def refuse(path: Path) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(pluralllm.server.runs.uploads, "sync_data", refuse)
    for index in range(CHUNKS):
        await uploads.put("u", index, chunk(content, index))
    with pytest.raises(ChunksMissing):
        await uploads.finish("u")
    monkeypatch.undo()
    await uploads.begin("u", manifest)
    for index in range(CHUNKS):
        await uploads.put("u", index, chunk(content, index))
    assert (await uploads.finish("u")).read_bytes() == content
