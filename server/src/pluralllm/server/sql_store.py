"""The store in SQL: SQLAlchemy async Core. SQLite today; nothing here is SQLite's but `_tune_sqlite`."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy.engine import Connection, Row
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from pluralllm.common.errors import InvalidConfig, StorageFull, StoreFailed
from pluralllm.common.ids import ClientId, Digest, ModelVersion, RoundNumber, RunId
from pluralllm.server import schema as t
from pluralllm.server import sql_rows as rows
from pluralllm.server.cancellation import unbroken
from pluralllm.server.events import event_kind, event_to_facts
from pluralllm.server.store import (
    Change,
    ClientRecord,
    EvaluationRecord,
    EventRecord,
    ReceiptRecord,
    RoundRecord,
    RunRecord,
    VersionRecord,
)

BUSY_TIMEOUT_MS = 5_000


async def open_store(url: str | sa.URL) -> "SqlStore":
    """Opens the database and brings its schema up to date. Raises StoreFailed, StorageFull or InvalidConfig (newer schema)."""
    engine = create_async_engine(url, pool_size=1, max_overflow=0, pool_reset_on_return=None)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine.sync_engine, "connect", _tune_sqlite)
        sa.event.listen(engine.sync_engine, "begin", _begin_immediate)
    store = SqlStore(engine)
    try:
        async with store.writing() as connection:
            await connection.run_sync(_migrate)
    except BaseException:
        await engine.dispose()
        raise
    return store


def _tune_sqlite(connection: Any, _: Any) -> None:
    """Durable above fast. The rollback journal, because WAL reset can corrupt up to SQLite 3.51.2 (sqlite.org/wal.html)."""
    connection.isolation_level = None  # we say BEGIN ourselves
    cursor = connection.cursor()
    for pragma in ("journal_mode=DELETE", "synchronous=EXTRA", "foreign_keys=ON", f"busy_timeout={BUSY_TIMEOUT_MS}"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _migrate(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        problem = f"  the database is of another release than this coordinator ({error})"
        raise InvalidConfig(file="state_dir", problems=problem) from error


class SqlStore:
    """See store.Store. One connection; writers wait for one another."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._one_at_a_time = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """One transaction, committed when the block ends well. Raises StoreFailed or StorageFull."""
        try:
            async with self._one_at_a_time, self._engine.begin() as connection:
                yield connection
        except IntegrityError as error:
            raise StoreFailed(problem=f"another writer was there first ({error.orig})") from error
        except DBAPIError as error:
            if getattr(error.orig, "sqlite_errorname", "") == "SQLITE_FULL":
                raise StorageFull(what="the coordinator's database") from error
            raise StoreFailed(problem=str(error.orig)) from error

    @unbroken
    async def _rows(self, query: sa.Select[Any]) -> Sequence[Row[Any]]:
        async with self.writing() as connection:
            found: Sequence[Row[Any]] = (await connection.execute(query)).all()
            return found

    async def _first(self, query: sa.Select[Any]) -> Row[Any] | None:
        found = await self._rows(query.limit(1))
        return found[0] if found else None

    @unbroken
    async def create_run(self, run: RunRecord, first_version: VersionRecord) -> None:
        async with self.writing() as connection:
            values = {
                "id": run.id,
                "spec_json": run.spec_json,
                "spec_sha256": run.spec_sha256,
                "created_s": run.created_s,
            }
            await connection.execute(sa.insert(t.runs).values(values))
            await connection.execute(sa.insert(t.versions).values(rows.version_values(first_version)))

    async def runs(self) -> Sequence[RunRecord]:
        found = await self._rows(sa.select(t.runs).order_by(t.runs.c.position))
        return [RunRecord(RunId(r.id), r.spec_json, Digest(r.spec_sha256), r.created_s) for r in found]

    @unbroken
    async def apply(self, change: Change) -> None:
        event = {
            "run": change.run,
            "sequence": change.sequence,
            "at_s": change.event.at_s,
            "kind": event_kind(change.event),
            "facts": json.dumps(event_to_facts(change.event)),
        }
        async with self.writing() as connection:
            await connection.execute(sa.insert(t.events).values(event))
            for receipt in change.receipts:
                await connection.execute(sa.insert(t.receipts).values(rows.receipt_values(receipt)))
            for number, client in change.withdrawn:
                mine = (t.receipts.c.run == change.run, t.receipts.c.round == number, t.receipts.c.client == client)
                await connection.execute(sa.delete(t.receipts).where(*mine))
            for version in change.versions:
                await connection.execute(sa.insert(t.versions).values(rows.version_values(version)))
            for row in change.rounds:
                await replace_row(connection, t.rounds, ("run", "round"), rows.round_values(row))
            for evaluation in change.evaluations:
                await replace_row(
                    connection, t.evaluations, ("run", "version", "client"), rows.evaluation_values(evaluation)
                )

    async def events(self, run: RunId, after: int, limit: int) -> Sequence[EventRecord]:
        table = t.events
        query = sa.select(table).where(table.c.run == run, table.c.sequence > after)
        found = await self._rows(query.order_by(table.c.sequence).limit(limit))
        return [EventRecord(r.sequence, r.at_s, r.kind, json.loads(r.facts)) for r in found]

    async def round(self, run: RunId, number: RoundNumber) -> RoundRecord | None:
        row = await self._first(sa.select(t.rounds).where(t.rounds.c.run == run, t.rounds.c.round == number))
        return rows.round_row(row) if row is not None else None

    async def rounds(self, run: RunId, before: int | None, limit: int) -> Sequence[RoundRecord]:
        query = sa.select(t.rounds).where(t.rounds.c.run == run)
        if before is not None:
            query = query.where(t.rounds.c.round < before)
        return [rows.round_row(row) for row in await self._rows(query.order_by(t.rounds.c.round.desc()).limit(limit))]

    async def receipts(self, run: RunId, number: RoundNumber) -> Sequence[ReceiptRecord]:
        table = t.receipts
        query = sa.select(table).where(table.c.run == run, table.c.round == number).order_by(table.c.client)
        return [rows.receipt_row(row) for row in await self._rows(query)]

    async def receipt(self, run: RunId, number: RoundNumber, client: ClientId) -> ReceiptRecord | None:
        table = t.receipts
        query = sa.select(table).where(table.c.run == run, table.c.round == number, table.c.client == client)
        row = await self._first(query)
        return rows.receipt_row(row) if row is not None else None

    async def version(self, run: RunId, number: ModelVersion) -> VersionRecord | None:
        row = await self._first(sa.select(t.versions).where(t.versions.c.run == run, t.versions.c.version == number))
        return rows.version_row(row) if row is not None else None

    async def versions(self, run: RunId) -> Sequence[VersionRecord]:
        query = sa.select(t.versions).where(t.versions.c.run == run).order_by(t.versions.c.version)
        return [rows.version_row(row) for row in await self._rows(query)]

    async def evaluations(self, run: RunId, after: int, limit: int) -> Sequence[tuple[int, EvaluationRecord]]:
        table = t.evaluations
        query = sa.select(table).where(table.c.run == run, table.c.position > after)
        found = await self._rows(query.order_by(table.c.position).limit(limit))
        return [(row.position, rows.evaluation_row(row)) for row in found]

    async def latest_evaluations(self, run: RunId, versions: int) -> Sequence[EvaluationRecord]:
        table = t.evaluations
        newest = (
            sa.select(table.c.version)
            .where(table.c.run == run)
            .distinct()
            .order_by(table.c.version.desc())
            .limit(versions)
        )
        query = sa.select(table).where(table.c.run == run, table.c.version.in_(newest.scalar_subquery()))
        return [
            rows.evaluation_row(row) for row in await self._rows(query.order_by(table.c.version, table.c.group_name))
        ]

    @unbroken
    async def save_client(self, client: ClientRecord) -> None:
        values = rows.client_values(client)
        changed = {name: value for name, value in values.items() if name != "created_s"}
        async with self.writing() as connection:
            known = sa.update(t.clients).where(t.clients.c.client == client.client).values(changed)
            if (await connection.execute(known)).rowcount == 0:
                await connection.execute(sa.insert(t.clients).values(values))

    async def clients(self) -> Sequence[ClientRecord]:
        found = await self._rows(sa.select(t.clients).order_by(t.clients.c.client))
        return [rows.client_row(row) for row in found]

    async def close(self) -> None:
        async with self._one_at_a_time:  # transactions whose callers have gone still end well
            await self._engine.dispose()


async def replace_row(
    connection: AsyncConnection, table: sa.Table, key: tuple[str, ...], values: dict[str, Any]
) -> None:
    await connection.execute(sa.delete(table).where(*(table.c[name] == values[name] for name in key)))
    await connection.execute(sa.insert(table).values(values))
