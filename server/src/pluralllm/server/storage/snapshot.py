"""Copies all rows of a database into an SQLite file, or from such a file into a database.

The rows show the database at one moment.
A coordinator may write to the database during the copy.
"""

import asyncio
import sqlite3
import time
from pathlib import Path

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from pluralllm.common.errors.tree import StorageFull, StoreFailed
from pluralllm.common.process.files import create_file, sync_file
from pluralllm.server.storage import migrations
from pluralllm.server.storage import schema as t
from pluralllm.server.storage.sql_engine import failure, migrate, new_engine

ROWS_AT_ONCE = 1000
COPY_LIMIT_S = 600.0
LOOK_EVERY_S = 0.05
# The limits are long, because a read-only transaction blocks nobody, and it waits for the local disk between two pages of rows.
PATIENT = {"statement_timeout": "600s", "idle_in_transaction_session_timeout": "600s"}


def sqlite_url(path: Path) -> sa.URL:
    return sa.URL.create("sqlite+aiosqlite", database=str(path))


def file_of(url: sa.URL) -> Path:
    """Returns the path of the file that an SQLite URL names."""
    return Path(url.database or "")


async def take_snapshot(url: sa.URL, target: Path) -> None:
    """Copies the database at `url` into a new SQLite file at `target`, which is durable when the function returns.

    An old file at `target` is deleted. Raises StoreFailed if the database cannot be read; StorageFull if no space is left.
    """
    await asyncio.to_thread(target.unlink, missing_ok=True)
    if url.get_backend_name() == "sqlite":
        await asyncio.to_thread(_copy_pages, file_of(url), target)
    else:
        await _copy_from_server(url, target)
    await asyncio.to_thread(sync_file, target)


def _copy_pages(source: Path, target: Path) -> None:
    """Copies an SQLite file by SQLite's online backup, in one step. The coordinator's next commit waits until the file is read.

    If the copy had several steps, each commit of the coordinator would restart the copy. Raises StoreFailed if the file cannot
    be read; StorageFull if no space is left.
    """
    end_s = time.monotonic() + COPY_LIMIT_S

    def look(_: int, remaining: int, total: int) -> None:
        if remaining and time.monotonic() > end_s:
            raise StoreFailed(problem=f"the database was busy for {COPY_LIMIT_S:g} s ({total} pages)")

    # Opened for writing: otherwise SQLite could not roll back the journal of a coordinator that was killed.
    origin_uri = f"{source.absolute().as_uri()}?mode=rw"
    try:
        origin = sqlite3.connect(origin_uri, uri=True, timeout=0)
        create_file(target)
        copy = sqlite3.connect(target)
        try:
            copy.execute("PRAGMA synchronous=OFF")  # the caller syncs once; an unfinished file is of no use anyway
            origin.backup(copy, pages=-1, progress=look, sleep=LOOK_EVERY_S)
        finally:
            copy.close()
            origin.close()
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorname", "") == "SQLITE_FULL":
            raise StorageFull(what=str(target)) from error
        raise StoreFailed(problem=f"{source}: {error}") from error


async def _copy_from_server(url: sa.URL, target: Path) -> None:
    """Copies all rows of a PostgreSQL database into an SQLite file, in one read-only transaction.

    With the isolation level REPEATABLE READ, all rows show one moment. Raises StoreFailed if another release made the tables
    or if the database fails.
    """
    create_file(target)
    origin, copy = new_engine(url, **PATIENT), new_engine(sqlite_url(target))
    try:
        async with origin.connect() as source, copy.begin() as made:
            await source.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            release = await source.run_sync(release_of)
            if release != "this":
                raise StoreFailed(problem=f"its tables are of {release} release: use the release that serves from it")
            await made.run_sync(migrate)
            await copy_rows(source, made)
    except DBAPIError as error:
        raise failure(error) from error
    finally:
        await origin.dispose()
        await copy.dispose()


async def copy_rows(source: AsyncConnection, target: AsyncConnection) -> None:
    """Replaces all rows in `target` by the rows in `source`. Both databases must have the tables of this release."""
    for table in t.metadata.sorted_tables:
        await target.execute(sa.delete(table))
        rows = await source.stream(sa.select(table), execution_options={"yield_per": ROWS_AT_ONCE})
        async for page in rows.mappings().partitions(ROWS_AT_ONCE):
            await target.execute(sa.insert(table), [dict(row) for row in page])


async def count_on(target: AsyncConnection) -> None:
    """Sets PostgreSQL's counters so that a new row gets a number above the highest existing number.

    SQLite needs no such setting, so the function then does nothing.
    """
    if target.dialect.name != "postgresql":
        return
    for column in (t.runs.c.position, t.evaluations.c.position):
        counter = sa.func.pg_get_serial_sequence(column.table.name, column.name)
        highest = sa.func.max(column)
        await target.execute(sa.select(sa.func.setval(counter, highest)).having(highest.is_not(None)))


async def tables_with_rows(url: sa.URL) -> tuple[str, ...]:
    """Returns the names of the coordinator's tables that have rows. The table `leadership`, which holds no data, is left out.

    If the SQLite file is missing, returns () and does not create the file. Raises StoreFailed if the database cannot be read.
    """
    if url.get_backend_name() == "sqlite" and not file_of(url).exists():
        return ()
    engine = new_engine(url)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(filled_tables)
    except DBAPIError as error:
        raise failure(error) from error
    finally:
        await engine.dispose()


def filled_tables(connection: Connection) -> tuple[str, ...]:
    """Returns the names of the coordinator's tables that have rows. The table `leadership`, which holds no data, is left out.

    The function reads on an open connection; `tables_with_rows` opens the connection itself.
    """
    existing = set(sa.inspect(connection).get_table_names())
    ours = [table for table in t.metadata.sorted_tables if table.name in existing and table is not t.leadership]
    return tuple(
        table.name for table in ours if connection.execute(sa.select(sa.literal(1)).select_from(table)).first()
    )


def release_of(connection: Connection) -> str:
    """Returns which release made a database's tables: "this", "an older" or "a newer" release; "no" if there are no tables."""
    script = ScriptDirectory(str(Path(migrations.__file__).parent))
    current = MigrationContext.configure(connection).get_current_revision()
    revisions = [revision.revision for revision in script.walk_revisions()]  # newest first
    if current is None:
        return "no"
    return "this" if current == revisions[0] else "an older" if current in revisions else "a newer"


async def release_of_file(path: Path) -> str:
    """Returns which release made an SQLite file's tables: "this", "an older" or "a newer" release; "no" if there are no tables.

    Raises StoreFailed if the file is not a database.
    """
    engine = new_engine(sqlite_url(path))
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(release_of)
    except DBAPIError as error:
        raise failure(error) from error
    finally:
        await engine.dispose()
