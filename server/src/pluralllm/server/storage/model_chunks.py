"""Messages with the chunks of model versions. Clients that fetch a version at the same time share the serialized messages."""

import asyncio
import hashlib
from collections import OrderedDict
from pathlib import Path

from pluralllm.common.errors.tree import Corrupt
from pluralllm.common.weights.chunks import CHUNK_BYTES, Manifest
from pluralllm.common.wire.chunk_messages import model_chunk
from pluralllm.common.words.ids import Digest
from pluralllm.server.process.cancellation import shielded

BLOCK = 4  # chunks read at a time: a switch of threads for each chunk costs more than reading it
BLOCKS_KEPT = 6  # 24 MiB: the first client of a round may be so far ahead of the last one before blocks are read again


class ModelChunks:
    """A cache of serialized GetChunksResponse messages.

    Each cache entry is a block of BLOCK messages. The cache keeps the most recently used blocks.
    """

    def __init__(self) -> None:
        self._blocks: OrderedDict[tuple[Digest, int], asyncio.Task[list[bytes]]] = OrderedDict()

    async def message(self, path: Path, manifest: Manifest, index: int) -> bytes:
        """Returns the message with one chunk of the blob at `path`. index: the chunk's number.

        Raises OSError if the file cannot be read; Corrupt if the chunk's hash differs from the hash in the manifest.
        """
        number, offset = divmod(index, BLOCK)
        key = (manifest.digest, number)
        block = self._blocks.get(key)
        if block is None:
            block = asyncio.create_task(asyncio.to_thread(_read_block, path, manifest, number))
            self._blocks[key] = block
            if len(self._blocks) > BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(key)
        try:
            return (await shielded(block))[offset]
        except Exception:  # the next caller reads the block again
            self._blocks.pop(key, None)
            raise


def _read_block(path: Path, manifest: Manifest, number: int) -> list[bytes]:
    messages = []
    with path.open("rb") as file:
        file.seek(number * BLOCK * CHUNK_BYTES)
        for index in range(number * BLOCK, min((number + 1) * BLOCK, manifest.chunks)):
            piece, expected = file.read(CHUNK_BYTES), manifest.chunk_hashes[index]
            if (actual := hashlib.sha256(piece)).digest() != expected:  # else a corrupt block would be sent to all
                what = f"chunk {index} of the model {manifest.digest[:12]}"
                raise Corrupt(what=what, expected=expected.hex(), got=actual.hexdigest())
            messages.append(model_chunk(index, piece))
    return messages
