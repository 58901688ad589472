"""Files in chunks of 1 MiB, for the network and for storage. A file's digest is the SHA-256 over the hashes of its chunks.

Each chunk is sent and checked by itself, and only a bad chunk must be sent again. The digest is the name of the whole file. A
file that is stored under its digest is called a blob.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pluralllm.common.errors.tree import Corrupt, DigestMismatch, OverLimit, WrongLayout
from pluralllm.common.words.ids import Digest

if TYPE_CHECKING:  # commands that move no weights start without numpy
    import numpy as np
    from numpy.typing import NDArray

# One constant: a chunk is far below every message limit, and a manifest of 100,000 hashes still fits into one message.
CHUNK_BYTES = 1024 * 1024
HASH_BYTES = 32


@dataclass(frozen=True, slots=True)
class Manifest:
    """The description of a blob (a file that is named by its digest): its digest, its size and the hash of each chunk."""

    digest: Digest  # SHA-256 over the concatenated chunk_hashes
    size_bytes: int
    chunk_hashes: tuple[bytes, ...]  # raw SHA-256 of each chunk; the last chunk may be shorter than CHUNK_BYTES

    def __repr__(self) -> str:
        return f"Manifest({self.digest[:12]}, {self.size_bytes} bytes)"

    @property
    def chunks(self) -> int:
        """Number of chunks in the blob."""
        return len(self.chunk_hashes)

    def chunk_size(self, index: int) -> int:
        """Returns the size of one chunk in bytes. index: number of the chunk, from 0."""
        return min(CHUNK_BYTES, self.size_bytes - index * CHUNK_BYTES)


def digest_of(chunk_hashes: Iterable[bytes]) -> Digest:
    """Computes the digest of a blob from the hashes of its chunks, so that the blob's bytes need not be hashed a second time."""
    return Digest(hashlib.sha256(b"".join(chunk_hashes)).hexdigest())


def checked_manifest(
    digest: str, size_bytes: int, chunk_bytes: int, chunk_hashes: Sequence[bytes], limit: int
) -> Manifest:
    """Checks the values of a manifest that came over the network, and returns the manifest.

    limit: the greatest allowed size in bytes. chunk_bytes: the sender's chunk size, which must be CHUNK_BYTES.
    Raises OverLimit if the size, the chunk size, or the number or length of the hashes is wrong. Raises DigestMismatch if
    `digest` is not the digest of the chunk hashes.
    """
    if not 0 < size_bytes <= limit:
        raise OverLimit(what="size_bytes of the blob", got=size_bytes, limit=limit)
    if chunk_bytes != CHUNK_BYTES:
        raise OverLimit(what="chunk_bytes", got=chunk_bytes, limit=CHUNK_BYTES)
    count = -(-size_bytes // CHUNK_BYTES)
    if len(chunk_hashes) != count or any(len(piece) != HASH_BYTES for piece in chunk_hashes):
        raise OverLimit(what="number of 32-byte chunk hashes", got=len(chunk_hashes), limit=count)
    if digest_of(chunk_hashes) != digest:
        raise DigestMismatch(what="the manifest", expected=digest, got=digest_of(chunk_hashes))
    return Manifest(Digest(digest), size_bytes, tuple(chunk_hashes))


def manifest_of(path: Path) -> Manifest:
    """Reads a file once and returns its manifest. The function keeps only one chunk in memory."""
    with path.open("rb") as file:
        hashes = tuple(hashlib.sha256(chunk).digest() for chunk in iter(lambda: file.read(CHUNK_BYTES), b""))
    return Manifest(digest_of(hashes), path.stat().st_size, hashes)


def keep_good_chunks(partial: Path, manifest: Manifest) -> int:
    """Returns the number of good chunks at the start of a partly downloaded file, and cuts off the rest of the file.

    A chunk is good if its hash is the hash in the manifest. If there is no file, the function creates an empty file.
    """
    partial.touch()
    good = 0
    with partial.open("r+b") as file:
        for index, expected in enumerate(manifest.chunk_hashes):
            if hashlib.sha256(file.read(manifest.chunk_size(index))).digest() != expected:
                break
            good += 1
        file.truncate(min(good * CHUNK_BYTES, manifest.size_bytes))
    return good


def missing_ranges(missing: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Returns chunk numbers as sorted ranges (first, last). Both ends belong to the range."""
    ranges: list[tuple[int, int]] = []
    for index in sorted(missing):
        if ranges and index == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], index)
        else:
            ranges.append((index, index))
    return tuple(ranges)


class HashingWriter:
    """Writes a file from front to back and hashes its chunks at the same time.

    The file does not survive a power loss until `process.files.publish` has moved the file to its final name.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._hashes: list[bytes] = []
        self._hasher = hashlib.sha256()
        self._room = CHUNK_BYTES  # bytes that the current chunk still takes
        self._file = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, data: bytes | memoryview) -> None:
        """Writes the next bytes of the file. For a numpy array, pass its attribute `data`."""
        if not len(data):
            return
        view = memoryview(data).cast("B")
        self._file.write(view)
        while view:
            piece, view = view[: self._room], view[self._room :]
            self._hasher.update(piece)
            self._room -= len(piece)
            if not self._room:
                self._close_chunk()

    def finish(self) -> Manifest:
        """Closes the file and returns its manifest.

        Raises WrongLayout if the number of written bytes is not the size that was passed to the constructor.
        """
        size = self._file.tell()
        self._file.close()
        if self._room < CHUNK_BYTES:
            self._close_chunk()
        if size != self._size_bytes:
            raise WrongLayout(problem=f"{size} bytes were written, the layout has {self._size_bytes}")
        return Manifest(digest_of(self._hashes), size, tuple(self._hashes))

    def _close_chunk(self) -> None:
        self._hashes.append(self._hasher.digest())
        self._hasher, self._room = hashlib.sha256(), CHUNK_BYTES


class HashingReader:
    """Reads a file from front to back and hashes the file in the same pass.

    A caller that passed a digest must call `check` before it trusts the bytes that it has read.
    """

    def __init__(self, path: Path, digest: Digest | None = None) -> None:
        """Opens the file. digest: the expected digest of the whole file; None switches hashing and checking off."""
        self._path, self._digest = path, digest
        self._hashes: list[bytes] = []
        self._hasher = hashlib.sha256()
        self._room = CHUNK_BYTES
        self._file = FileIO(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def read_into(self, target: "NDArray[np.uint8]") -> None:
        """Fills the array `target` with the next bytes of the file. Raises Corrupt if the file has too few bytes left."""
        view = target.data
        while view:
            count = self._file.readinto(view[: self._room]) or 0
            if not count:
                raise Corrupt(what=f"stored weights {self._path.name}", expected=f"{len(view)} more bytes", got="none")
            if self._digest is not None:
                self._hasher.update(view[:count])
            view = view[count:]
            self._room -= count
            if not self._room:
                self._close_chunk()

    def check(self) -> None:
        """Compares the digest of the bytes read with the expected digest. Call the method after the last byte is read.

        Raises Corrupt if the digests differ. Does nothing if the reader has no expected digest.
        """
        if self._digest is None:
            return
        if self._room < CHUNK_BYTES:
            self._close_chunk()
        if (got := digest_of(self._hashes)) != self._digest:
            raise Corrupt(what=f"stored weights {self._path.name}", expected=self._digest, got=got)

    def _close_chunk(self) -> None:
        self._hashes.append(self._hasher.digest())
        self._hasher, self._room = hashlib.sha256(), CHUNK_BYTES
