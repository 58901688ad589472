"""The pairs of stores that a drill runs on: their configuration keys, and a way to spoil a stored file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from support.real_stores import S3, Postgres

from pluralllm.server.storage.object_blobs import open_bucket


class StorePair(Protocol):
    """A database and a blob store for one federation at a time."""

    name: str

    def settings(self, folder: Path) -> Mapping[str, str]:
        """Returns the coordinator's configuration keys for an empty database and an empty blob store."""
        ...

    def spoil(self, folder: Path, digest: str) -> None:
        """Changes a byte of a stored blob."""
        ...


class Embedded:
    """SQLite and files in the state directory."""

    name = "sqlite+local"

    def settings(self, folder: Path) -> Mapping[str, str]:
        return {}

    def spoil(self, folder: Path, digest: str) -> None:
        path = folder / "coordinator" / "blobs" / digest[:2] / digest
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)


class Served:
    """PostgreSQL and an S3 API, with a database and a bucket for each federation."""

    name = "postgresql+s3"

    def __init__(self, postgres: Postgres, s3: S3) -> None:
        self._postgres = postgres
        self._s3 = s3
        self._buckets: dict[Path, str] = {}
        self.environment = s3.environment  # each process that opens the stores needs it

    def settings(self, folder: Path) -> Mapping[str, str]:
        self._buckets[folder] = self._s3.new_bucket()
        return {
            "database_url": self._postgres.new_database(),
            "blob_url": self._buckets[folder],
            "blob_endpoint": self._s3.endpoint,
        }

    def spoil(self, folder: Path, digest: str) -> None:
        """Changes a byte in the bucket and in the coordinator's local copy."""
        Embedded().spoil(folder, digest)
        bucket = open_bucket(self._buckets[folder], self._s3.endpoint)
        content = bytearray(bytes(bucket.get(digest).bytes()))
        content[-1] ^= 1
        bucket.put(digest, bytes(content))
