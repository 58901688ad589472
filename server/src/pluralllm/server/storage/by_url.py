"""Opens the configured database and blob store: files in the state directory, or services that a URL names."""

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
    """Returns the URL of the configured PostgreSQL database.

    If no database is configured, returns the URL of the SQLite file in the state directory.
    """
    if config.database_url is None:
        return state.database_url
    return sa.make_url(config.database_url.get_secret_value()).set(drivername="postgresql+psycopg")


def blobs_of(config: ServerConfig, state: StateDirectory) -> Blobs:
    """Returns the blob store: the configured bucket with local copies, or local files if no bucket is configured.

    Local copies and local files are in the state directory. Raises InvalidConfig if the bucket's URL is not valid.
    """
    local = LocalBlobs(state.blobs)
    if config.blob_url is None:
        return local
    bucket = open_bucket(config.blob_url, config.blob_endpoint)
    return ObjectBlobs(bucket, local, state.scratch, BLOB_CACHE_BYTES)


async def database_answers(config: ServerConfig, state: StateDirectory) -> str:
    """Connects to the database and returns a text with the database's URL (but not the password) and the database's version.

    Raises StoreFailed if the database does not answer.
    """
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
    """Opens the database for a command that must not run beside a coordinator, and closes the database when the block ends.

    Raises InUse while a coordinator serves; StoreFailed, StorageFull or InvalidConfig if the database cannot be opened.
    """
    url = database_url(config, state)
    async with alone(url):
        store = await open_store(url)
        try:
            yield store
        finally:
            await store.close()
