"""An upload may be slow: it ends when no byte comes for the configured time, however long a chunk takes."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from pluralllm.common.errors.tree import InvalidArgument, StreamSilent
from pluralllm.common.weights.chunks import CHUNK_BYTES
from pluralllm.common.wire.chunk_messages import ChunkMessage
from pluralllm.common.words.names import TaskName
from pluralllm.server.rpc import federation as federation_module
from pluralllm.server.rpc.federation import Federation
from pluralllm.v1 import federation_pb2 as pb

IDLE_S = 0.05
TASK = "runs/r/rounds/1/tasks/train-ann"
CHUNK = bytes(range(256)) * 4096
HALF = CHUNK_BYTES // 2


class Uploading(Federation):
    """The service without its coordinator: it keeps the chunks that arrive."""

    def __init__(self) -> None:
        self._chunk_idle_s, self._intake = IDLE_S, self  # type: ignore[assignment]
        self.chunks: list[tuple[int, bytes]] = []

    def _task_of(self, name: str) -> TaskName:
        return TaskName.parse(name)

    async def put(self, task: TaskName, digest: str, index: int, data: bytes) -> None:
        assert (task, digest) == (TaskName.parse(TASK), "d")
        self.chunks.append((index, bytes(data)))

    async def missing(self, task: TaskName) -> frozenset[int]:
        assert task == TaskName.parse(TASK)
        return frozenset()


def piece(index: int, data: bytes, *, more: bool = False, task: str = TASK) -> ChunkMessage[pb.PutChunksRequest]:
    return ChunkMessage(pb.PutChunksRequest(task=task, digest="d", index=index, more=more), data)


async def upload(service: Uploading, messages: Sequence[ChunkMessage[pb.PutChunksRequest]], end: asyncio.Event) -> None:
    async def stream() -> AsyncIterator[ChunkMessage[pb.PutChunksRequest]]:
        for message in messages:
            yield message
        await end.wait()

    async with asyncio.timeout(10):
        await service.PutChunks(stream(), None)


def ended() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


async def test_chunks_arrive_whole_or_in_pieces() -> None:
    service = Uploading()
    pieces = [piece(4, CHUNK[:HALF], more=True), piece(4, CHUNK[HALF:], task=""), piece(5, CHUNK), piece(6, b"end")]
    await upload(service, pieces, ended())
    assert service.chunks == [(4, CHUNK), (5, CHUNK), (6, b"end")]


async def test_an_upload_in_pieces_that_falls_silent_ends_after_the_configured_time() -> None:
    service = Uploading()
    with pytest.raises(StreamSilent, match=r"between here and ann was silent: no byte for 0\.05 s"):
        await upload(service, [piece(0, CHUNK), piece(1, b"a", more=True)], asyncio.Event())
    assert service.chunks == [(0, CHUNK)]


async def test_an_earlier_release_has_time_for_a_whole_chunk_besides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(federation_module, "transfer_s", lambda size_bytes: size_bytes / CHUNK_BYTES * 0.25)
    with pytest.raises(StreamSilent, match=r"no byte for 0\.3 s"):
        await upload(Uploading(), [piece(0, CHUNK)], asyncio.Event())


async def test_a_piece_of_another_chunk_is_refused_before_anything_is_stored() -> None:
    service = Uploading()
    with pytest.raises(InvalidArgument, match="the rest of chunk 0 is missing"):
        await upload(service, [piece(0, b"a", more=True), piece(1, b"b")], ended())
    assert service.chunks == []
