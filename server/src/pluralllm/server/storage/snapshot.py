"""All rows of a coordinator's database as they are at one moment, while it is written to: into an SQLite file, and from one."""

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
from pluralllm.common.process.files import sync_file
from pluralllm.server.storage import migrations
from pluralllm.server.storage import schema as t
from pluralllm.server.storage.sql_engine import failure, migrate, new_engine

ROWS_AT_ONCE = 1000
COPY_LIMIT_S = 600.0
LOOK_EVERY_S = 0.05
# A transaction that only reads holds nobody up; between two pages of rows it waits for this side's disk.
PATIENT = {"statement_timeout": "600s", "idle_in_transaction_session_timeout": "600s"}


def sqlite_url(path: Path) -> sa.URL:
    return sa.URL.create("sqlite+aiosqlite", database=str(path))


def file_of(url: sa.URL) -> Path:
    """Of an SQLite database."""
    return Path(url.database or "")


async def take_snapshot(url: sa.URL, target: Path) -> None:
    """Writes a new SQLite file, durable when this returns. Raises StoreFailed, StorageFull."""
    await asyncio.to_thread(target.unlink, missing_ok=True)
    if url.get_backend_name() == "sqlite":
        await asyncio.to_thread(_copy_pages, file_of(url), target)
    else:
        await _copy_from_server(url, target)
    await asyncio.to_thread(sync_file, target)


def _copy_pages(source: Path, target: Path) -> None:
    """SQLite's online backup, in one step: in several it would begin anew at each transaction of the coordinator's.

    The coordinator's next commit waits for it, which takes as long as reading the file.
    """
    end_s = time.monotonic() + COPY_LIMIT_S

    def look(_: int, remaining: int, total: int) -> None:
        if remaining and time.monotonic() > end_s:
            raise StoreFailed(problem=f"the database was busy for {COPY_LIMIT_S:g} s ({total} pages)")

    # To be written to, or the journal of a coordinator that was killed could not be rolled back.
    origin_uri = f"{source.absolute().as_uri()}?mode=rw"
    try:
        origin = sqlite3.connect(origin_uri, uri=True, timeout=0)
        copy = sqlite3.connect(target)
        try:
            copy.execute("PRAGMA synchronous=OFF")  # synced once, by who called; half a file is nothing anyway
            origin.backup(copy, pages=-1, progress=look, sleep=LOOK_EVERY_S)
        finally:
            copy.close()
            origin.close()
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorname", "") == "SQLITE_FULL":
            raise StorageFull(what=str(target)) from error
        raise StoreFailed(problem=f"{source}: {error}") from error


async def _copy_from_server(url: sa.URL, target: Path) -> None:
    """One transaction that sees one moment (PostgreSQL's REPEATABLE READ) and writes nothing."""
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
    """Every row of every table, in place of those in `target`. Both have this release's schema."""
    for table in t.metadata.sorted_tables:
        await target.execute(sa.delete(table))
        found = await source.stream(sa.select(table), execution_options={"yield_per": ROWS_AT_ONCE})
        async for page in found.mappings().partitions(ROWS_AT_ONCE):
            await target.execute(sa.insert(table), [dict(row) for row in page])


async def count_on(target: AsyncConnection) -> None:
    """Numbers that the database gives go on after the highest there is. SQLite does so by itself."""
    if target.dialect.name != "postgresql":
        return
    for column in (t.runs.c.position, t.evaluations.c.position):
        counter = sa.func.pg_get_serial_sequence(column.table.name, column.name)
        highest = sa.func.max(column)
        await target.execute(sa.select(sa.func.setval(counter, highest)).having(highest.is_not(None)))


async def tables_with_rows(url: sa.URL) -> tuple[str, ...]:
    """Of ours; who may lead says nothing about data. Changes nothing, and makes no file. Raises StoreFailed."""
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
    there = set(sa.inspect(connection).get_table_names())
    ours = [table for table in t.metadata.sorted_tables if table.name in there and table is not t.leadership]
    return tuple(
        table.name for table in ours if connection.execute(sa.select(sa.literal(1)).select_from(table)).first()
    )


def release_of(connection: Connection) -> str:
    """Which release's tables a database has: "this", "an older", "a newer", or "no" one's."""
    script = ScriptDirectory(str(Path(migrations.__file__).parent))
    found = MigrationContext.configure(connection).get_current_revision()
    known = [revision.revision for revision in script.walk_revisions()]
    if found is None:
        return "no"
    return "this" if found == known[0] else "an older" if found in known else "a newer"


async def release_of_file(path: Path) -> str:
    """See `release_of`. Raises StoreFailed for what is no database."""
    engine = new_engine(sqlite_url(path))
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(release_of)
    except DBAPIError as error:
        raise failure(error) from error
    finally:
        await engine.dispose()
