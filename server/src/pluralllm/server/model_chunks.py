"""Model versions on their way to clients: read and made into messages once for all who fetch the same at about the same time."""

import asyncio
from collections import OrderedDict
from pathlib import Path

from pluralllm.common.chunk_messages import model_chunk
from pluralllm.common.chunks import CHUNK_BYTES
from pluralllm.common.ids import Digest

BLOCK = 4  # chunks read at a time: a change of threads for each costs more than the reading
BLOCKS_KEPT = 6  # 24 MiB: how far the first client of a round may be ahead of the last one


class ModelChunks:
    """Blocks of serialized GetChunksResponse messages, the last few used."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[tuple[Digest, int], asyncio.Future[list[bytes]]] = OrderedDict()

    async def message(self, path: Path, digest: Digest, index: int) -> bytes:
        """One chunk's message. `path` is the file of the blob `digest`. Raises OSError."""
        number, place = divmod(index, BLOCK)
        key = (digest, number)
        block = self._blocks.get(key)
        if block is None:
            block = asyncio.ensure_future(asyncio.to_thread(_read_block, path, number))
            self._blocks[key] = block
            if len(self._blocks) > BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(key)
        try:
            return (await asyncio.shield(block))[place]
        except OSError:
            self._blocks.pop(key, None)
            raise


def _read_block(path: Path, number: int) -> list[bytes]:
    first = number * BLOCK
    with path.open("rb") as file:
        file.seek(first * CHUNK_BYTES)
        pieces = [file.read(CHUNK_BYTES) for _ in range(BLOCK)]
    return [model_chunk(first + place, piece) for place, piece in enumerate(pieces)]
