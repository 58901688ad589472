"""The download of a model version into a file, for the daemon and for the operator's commands.

The module does not use gRPC: the caller reads the coordinator's stream of chunks and passes on each chunk.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pluralllm.common.errors.tree import Corrupt, InvalidArgument
from pluralllm.common.process.files import create_file, storage_errors
from pluralllm.common.weights.chunks import CHUNK_BYTES, Manifest, keep_good_chunks
from pluralllm.common.weights.pieces import Pieces, transfer_s

MAX_MODEL_BYTES = 100 * 1024**3
STREAM_SETUP_S = 60.0


def stream_deadline_s(manifest: Manifest) -> float:
    """Returns the deadline in seconds for a stream of all chunks of a file; it is long enough for the slowest supported link."""
    return STREAM_SETUP_S + transfer_s(manifest.size_bytes)


class ModelDownload:
    """A partial file that grows by verified chunks. A new download continues after the good chunks of an earlier attempt."""

    def __init__(self, name: str, manifest: Manifest, draft: Path) -> None:
        """Checks the chunks that the file `draft` already has, and removes all bytes after the last good chunk.

        name: name of the model version in error texts. manifest: size and chunk hashes of the complete file.
        Raises StorageFull if the disk is full.
        """
        self._name, self._manifest, self._draft = name, manifest, draft
        self._file: BinaryIO | None = None
        self._pieces = Pieces()
        with storage_errors(name):
            create_file(draft, 0o644)
            self.next_chunk = keep_good_chunks(draft, manifest)

    @property
    def is_complete(self) -> bool:
        """Whether the partial file has every chunk."""
        return self.next_chunk == self._manifest.chunks

    @property
    def size_bytes(self) -> int:
        """The number of verified bytes in the partial file."""
        return min(self.next_chunk * CHUNK_BYTES, self._manifest.size_bytes)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keeps the partial file open for `write` until the block ends. Raises StorageFull if the disk is full."""
        with storage_errors(self._name), self._draft.open("ab") as self._file:
            yield

    def write(self, index: int, piece: bytes | memoryview, *, more: bool = False) -> None:
        """Takes the next piece of the next chunk, and appends the chunk to the file when it is complete.

        more: whether the next piece belongs to the same chunk. Raises Corrupt if `index` is not the next chunk's number, or if
        the chunk has another hash.
        """
        assert self._file is not None
        what = f"chunk {index} of {self._name}"
        if self.is_complete or index != self.next_chunk:
            expected = "the end of the stream" if self.is_complete else f"chunk {self.next_chunk}"
            raise Corrupt(what=what, expected=expected, got=f"chunk {index}")
        try:
            chunk = self._pieces.add(index, piece, more=more)
        except InvalidArgument as error:
            raise Corrupt(what=what, expected="the pieces of one chunk", got=str(error)) from error
        if chunk is None:
            return
        expected_hash, received_hash = self._manifest.chunk_hashes[index], hashlib.sha256(chunk)
        if received_hash.digest() != expected_hash or len(chunk) != self._manifest.chunk_size(index):
            raise Corrupt(what=what, expected=expected_hash.hex(), got=received_hash.hexdigest())
        self._file.write(chunk)
        self.next_chunk += 1

    def publish(self, target: Path) -> None:
        """Moves the complete file to `target`. Raises StorageFull if the disk is full."""
        assert self.is_complete
        with storage_errors(self._name):
            self._draft.replace(target)
