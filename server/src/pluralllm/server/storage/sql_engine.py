"""Connections to the database, SQLite or PostgreSQL. Commits are durable rather than fast, and every wait has a limit.

The module also turns the database's errors into the project's errors.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from pluralllm.common.errors.tree import InvalidConfig, PluralError, StorageFull, StoreFailed
from pluralllm.server.storage import schema

NEWEST_REVISION = "0015"  # of the folder migrations; a test compares the two
BUSY_TIMEOUT_MS = 5_000
SETTINGS = (
    *("journal_mode=DELETE", "synchronous=EXTRA", "foreign_keys=ON", f"busy_timeout={BUSY_TIMEOUT_MS}"),
    "temp_store=MEMORY",  # the folder for temporary files may be full
)
ONLY_READS = "pluralllm_only_reads"  # the execution option of a transaction that only reads
DISK_FULL = "53100"  # SQLSTATE, PostgreSQL's appendix A
# Limits of a session. PostgreSQL ends a session whose client is silent, so that nobody waits for its locks. TCP keepalives
# detect a host that has gone; the limits on idle time detect a process that is paused.
POSTGRES_LIMITS = {
    "statement_timeout": "60s",
    "lock_timeout": "30s",
    "idle_in_transaction_session_timeout": "10s",
    "tcp_keepalives_idle": "4",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
}
# The same limits on the client's side (libpq's connection parameters).
POSTGRES_CLIENT = {
    "connect_timeout": 10,
    "keepalives_idle": 4,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    "application_name": "pluralllm-server",
}


def new_engine(url: sa.URL, **limits: str) -> AsyncEngine:
    """Returns an engine with one connection. The connection opens when it is first needed.

    limits: further settings of the PostgreSQL session by name, such as time limits; SQLite ignores them.
    """
    if url.get_backend_name() == "sqlite":
        engine = create_async_engine(url, pool_size=1, max_overflow=0, pool_reset_on_return=None)
        sa.event.listen(engine.sync_engine, "connect", _tune_sqlite)
        sa.event.listen(engine.sync_engine, "begin", _begin)
        return engine
    options = " ".join(f"-c {name}={value}" for name, value in {**POSTGRES_LIMITS, **limits}.items())
    arguments = {**POSTGRES_CLIENT, "options": options}
    return create_async_engine(url, pool_size=1, max_overflow=0, pool_pre_ping=True, connect_args=arguments)


def reading_engine(engine: AsyncEngine) -> AsyncEngine:
    """Returns the engine for transactions that only read. They take no lock that a writer waits for.

    In PostgreSQL it has a connection of its own, so that reads and writes go on at the same time. In SQLite it is the writer's
    connection: with the rollback journal, a reader beside the writer would delay each commit until its lock is gone.
    """
    if engine.dialect.name == "sqlite":
        return engine.execution_options(**{ONLY_READS: True})
    return new_engine(engine.url)


def failure(error: DBAPIError) -> PluralError:
    """Turns a database error into StorageFull if no space is left, or into StoreFailed otherwise."""
    if isinstance(error, IntegrityError):
        return StoreFailed(problem=f"another writer was there first ({error.orig})")
    if getattr(error.orig, "sqlite_errorname", "") == "SQLITE_FULL" or sqlstate(error) == DISK_FULL:
        return StorageFull(what="the coordinator's database")
    return StoreFailed(problem=str(error.orig).strip())


def is_broken(error: DBAPIError) -> bool:
    """Returns whether the error means that the database can no longer be trusted.

    The database is not trusted if SQLite could not read or write its file, or if the file is damaged.
    """
    name = getattr(error.orig, "sqlite_errorname", "")
    return name.startswith(("SQLITE_IOERR", "SQLITE_CORRUPT", "SQLITE_NOTADB"))


def sqlstate(error: DBAPIError) -> str:
    """Returns PostgreSQL's code of an error (SQLSTATE), or "" for an error of another database."""
    return getattr(error.orig, "sqlstate", None) or ""


def migrate(connection: Connection) -> None:
    """Brings the database schema up to date in the connection's transaction.

    An empty database gets the newest tables at once: all migrations would take ten times as long.
    Raises InvalidConfig if a newer release made the schema.
    """
    if not (tables := sa.inspect(connection).get_table_names()):
        _make_newest(connection)
        return
    if _revision(connection, tables) == NEWEST_REVISION:
        return
    from alembic import command  # noqa: PLC0415 - a third of a second, which few starts of a coordinator need
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util.exc import CommandError  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        problem = f"  the database is of another release than this coordinator ({error})"
        raise InvalidConfig(file="state_dir", problems=problem) from error


def _make_newest(connection: Connection) -> None:
    """Makes the newest tables in an empty database, as the migrations leave them; a test compares the two."""
    noted = sa.Table("alembic_version", sa.MetaData(), sa.Column("version_num", sa.String(32), nullable=False))
    noted.append_constraint(sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"))
    noted.create(connection)
    connection.execute(noted.insert().values(version_num=NEWEST_REVISION))
    schema.metadata.create_all(connection, checkfirst=False)
    connection.execute(schema.leadership.insert().values(id=1, generation=0))


def _revision(connection: Connection, tables: Collection[str]) -> str | None:
    """Returns the revision that Alembic has noted in the database; None if there is none, or more than one."""
    if "alembic_version" not in tables:
        return None
    revisions = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalars().all()
    return str(revisions[0]) if len(revisions) == 1 else None


def _tune_sqlite(connection: Any, _: Any) -> None:
    """Makes a new SQLite connection durable: a commit returns only when its data is on the disk.

    The connection uses the rollback journal, because the WAL mode of SQLite 3.51.2 and older can corrupt the file
    (sqlite.org/wal.html).
    """
    connection.isolation_level = None  # _begin sends BEGIN
    cursor = connection.cursor()
    for pragma in SETTINGS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    only_reads = connection.get_execution_options().get(ONLY_READS, False)
    connection.exec_driver_sql("BEGIN" if only_reads else "BEGIN IMMEDIATE")
