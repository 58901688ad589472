"""Opens the database and the blob store that the configuration names: embedded in the state directory, or by URL."""

import contextlib
from collections.abc import AsyncIterator

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from pluralllm.server.process.config import ServerConfig
from pluralllm.server.storage.blobs import Blobs, LocalBlobs
from pluralllm.server.storage.leadership import alone
from pluralllm.server.storage.object_blobs import ObjectBlobs, open_bucket
from pluralllm.server.storage.sql_engine import failure, new_engine
from pluralllm.server.storage.sql_store import SqlStore, open_store
from pluralllm.server.storage.state_directory import StateDirectory

# Limit of the local copies of the bucket's blobs: some versions of the largest models. Older copies are fetched again.
BLOB_CACHE_BYTES = 20_000_000_000


def database_url(config: ServerConfig, state: StateDirectory) -> sa.URL:
    """URL of the configured PostgreSQL database, or of the SQLite file in the state directory."""
    if config.database_url is None:
        return state.database_url
    return sa.make_url(config.database_url.get_secret_value()).set(drivername="postgresql+psycopg")


def blobs_of(config: ServerConfig, state: StateDirectory) -> Blobs:
    """The configured bucket with local copies in the state directory; without one, files there. Raises InvalidConfig."""
    local = LocalBlobs(state.blobs)
    if config.blob_url is None:
        return local
    bucket = open_bucket(config.blob_url, config.blob_endpoint)
    return ObjectBlobs(bucket, local, state.scratch, BLOB_CACHE_BYTES)


async def database_answers(config: ServerConfig, state: StateDirectory) -> str:
    """Connects to the database and returns its URL, without the password, and its version. Raises StoreFailed."""
    url = database_url(config, state)
    engine = new_engine(url)
    try:
        async with engine.connect() as connection:
            version = ".".join(map(str, engine.dialect.server_version_info or ()))
            await connection.execute(sa.text("SELECT 1"))
    except DBAPIError as error:
        raise failure(error) from error
    finally:
        await engine.dispose()
    return f"{url.render_as_string(hide_password=True)}, {url.get_backend_name()} {version}"


@contextlib.asynccontextmanager
async def opened_alone(config: ServerConfig, state: StateDirectory) -> AsyncIterator[SqlStore]:
    """Opens the database for a command that must not run beside a coordinator.

    Raises InUse while a coordinator serves, and what open_store raises.
    """
    url = database_url(config, state)
    async with alone(url):
        store = await open_store(url)
        try:
            yield store
        finally:
            await store.close()
