"""Blobs in an object store (S3 and compatible stores, Google Cloud, Azure), with local copies from which blobs are read."""

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore, from_url

from pluralllm.common.errors.tree import InvalidConfig, NotFound, StoreFailed
from pluralllm.common.process.files import storage_errors
from pluralllm.common.weights.chunks import CHUNK_BYTES
from pluralllm.common.words.ids import Digest
from pluralllm.server.storage.blobs import LocalBlobs, verify

if TYPE_CHECKING:  # obstore offers these types to type checkers only
    from obstore.store import ClientConfig, RetryConfig, S3Config

PART_BYTES = 8 * CHUNK_BYTES  # one part of a multipart upload; the minimum of S3 is 5 MiB
PARTS_AT_ONCE = 4
REQUEST_LIMIT = timedelta(seconds=120)
RETRY_LIMIT = timedelta(seconds=60)


def open_bucket(url: str, endpoint: str | None) -> ObjectStore:
    """Opens the bucket at a URL: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://BUCKET/PREFIX.

    endpoint: the address of an S3-compatible store; None for the cloud provider's own address. Credentials come from the
    environment. Raises InvalidConfig if the URL or a setting is not valid.
    """
    is_plain = endpoint is not None and endpoint.startswith("http://")
    options: ClientConfig = {"timeout": REQUEST_LIMIT, "allow_http": is_plain}
    retries: RetryConfig = {"max_retries": 5, "retry_timeout": RETRY_LIMIT}
    config: S3Config | None = None if endpoint is None else {"endpoint": endpoint}
    try:
        return from_url(url, config=config, client_options=options, retry_config=retries)
    except (BaseError, ValueError) as error:
        raise InvalidConfig(file="blob_url", problems=f"  {url}: {error}") from error


async def look_into(bucket: ObjectStore) -> None:
    """Lists the bucket's first blobs, to check that the bucket answers.

    Raises NotFound if there is no such bucket; StoreFailed if the object store fails in another way.
    """
    with _failures("the bucket"):
        async for _ in obstore.list(bucket, chunk_size=10):
            return


class ObjectBlobs:
    """A store of blobs in a bucket of an object store. The protocol blobs.Blobs describes the methods.

    Each blob that is stored or fetched also gets a local copy in the store `kept`. If the copies have more than `kept_bytes`
    bytes in all, the least recently used copies are deleted. drafts: the folder for files that are being fetched.
    """

    def __init__(self, bucket: ObjectStore, kept: LocalBlobs, drafts: Path, kept_bytes: int) -> None:
        self._bucket = bucket
        self._kept = kept
        self._drafts = drafts
        self._kept_bytes = kept_bytes

    async def put(self, digest: Digest, source: Path) -> None:
        try:
            with _failures(digest):
                await obstore.put_async(
                    self._bucket, digest, source, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE
                )
        except NotFound as error:
            raise StoreFailed(problem="the object store: there is no such bucket") from error
        await self._keep(digest, source)

    async def path(self, digest: Digest) -> Path:
        with contextlib.suppress(NotFound):
            path = await self._kept.path(digest)
            os.utime(path)  # marks the copy as used, so that it is deleted last
            return path
        draft = self._drafts / f"fetched-{uuid.uuid4().hex}"
        try:
            with storage_errors(f"blob {digest[:12]}"), draft.open("wb") as file:
                async for piece in self._pieces(digest):
                    await asyncio.to_thread(file.write, piece)
            await asyncio.to_thread(verify, draft, digest)
            await self._keep(digest, draft)
        finally:
            draft.unlink(missing_ok=True)
        return await self._kept.path(digest)

    async def exists(self, digest: Digest) -> bool:
        with contextlib.suppress(NotFound), _failures(digest):
            await obstore.head_async(self._bucket, digest)
            return True
        return False

    async def delete(self, digest: Digest) -> None:
        with contextlib.suppress(NotFound), _failures(digest):
            await obstore.delete_async(self._bucket, digest)
        await self._kept.delete(digest)

    async def digests(self) -> Sequence[Digest]:
        digests: list[Digest] = []
        with _failures(""):
            async for page in obstore.list(self._bucket, chunk_size=1000):
                digests += [Digest(entry["path"]) for entry in page if "/" not in entry["path"]]
        return sorted(digests)

    async def _pieces(self, digest: Digest) -> AsyncIterator[bytes]:
        with _failures(digest):
            answer = await obstore.get_async(self._bucket, digest)
            async for piece in answer.stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(piece)

    async def _keep(self, digest: Digest, source: Path) -> None:
        await self._kept.put(digest, source)
        await self._kept.trim(self._kept_bytes)


@contextlib.contextmanager
def _failures(name: str) -> Iterator[None]:
    """Turns an error of the object store in the block into NotFound or StoreFailed.

    The error becomes NotFound if the object store has no object `name`; every other error becomes StoreFailed.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(what="blob", name=name) from error
    except BaseError as error:
        first_line = str(error).partition("\n")[0]
        raise StoreFailed(problem=f"the object store: {first_line}") from error
