"""The store of the coordinator's records in SQL: SQLAlchemy async Core, over SQLite or PostgreSQL."""

import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from pluralllm.common.errors.tree import Overtaken, StoreFailed
from pluralllm.common.process.files import create_file, storage_errors
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.words.ids import ClientId, Digest, GroupName, ModelVersion, RoundNumber, RunId
from pluralllm.server.process.cancellation import unbroken
from pluralllm.server.process.fail_stop import FailStop
from pluralllm.server.process.instruments import STORE_SECONDS
from pluralllm.server.rounds.events import RoundStep
from pluralllm.server.storage import schema as t
from pluralllm.server.storage import sql_rows as rows
from pluralllm.server.storage.sql_blobs import named_blobs
from pluralllm.server.storage.sql_engine import failure, is_broken, migrate, new_engine, reading_engine
from pluralllm.server.storage.store import (
    FIRST_VERSION,
    Change,
    Checkpoint,
    ClientRecord,
    EvaluationRecord,
    EventRecord,
    ReceiptRecord,
    RoundMessage,
    RoundRecord,
    RunBlobs,
    RunRecord,
    SettledRun,
)
from pluralllm.server.storage.turns import Turns


async def open_store(url: str | sa.URL, fail_stop: FailStop | None = None) -> "SqlStore":
    """Opens the database and brings its schema up to date.

    fail_stop: the stop signal, which gets errors after which the database cannot be trusted. None for a command that only
    reads, because such a command ends at the first error. Raises StoreFailed if the database fails; StorageFull if no space
    is left;
    InvalidConfig if a newer release made the schema.
    """
    location = sa.make_url(url)
    if location.get_backend_name() == "sqlite" and location.database not in (None, "", ":memory:"):
        with storage_errors("the database"):
            create_file(Path(location.database), 0o644)
    engine = new_engine(location)
    store = SqlStore(engine, fail_stop or FailStop())
    try:
        async with store.writing() as connection:
            await connection.run_sync(migrate)
    except BaseException:
        await engine.dispose()
        raise
    return store


class SqlStore:
    """The store in SQL. The protocol store.Store describes the methods. Writes wait for one another on the one connection.

    The generation is the number of the coordinator that may write, in one row of the database. Every transaction first
    checks the generation. A write locks that row. So if two coordinators use one database, their writes run one after the
    other, and the older coordinator's transactions are refused. A read takes no lock: what it returns is durable.
    """

    def __init__(self, engine: AsyncEngine, fail_stop: FailStop) -> None:
        self._engine, self._reader = engine, reading_engine(engine)
        self._fail_stop = fail_stop
        self._turns = Turns()
        self._read_turns = self._turns if engine.dialect.name == "sqlite" else Turns()  # one for each connection
        self._generation = 0  # 0 = not checked: the store is only read, or a command has the database to itself

    async def take_over(self) -> int:
        """Gives this store a new generation (a number in the database), and returns the generation.

        From now on only this store may read and write: every store with an older generation raises Overtaken.
        """
        async with self.writing() as connection:
            chosen = sa.select(t.leadership.c.generation).with_for_update()
            newest: int = (await connection.execute(chosen)).scalar_one() + 1
            await connection.execute(sa.update(t.leadership).values(generation=newest))
        self._generation = newest
        return newest

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """Runs the block in one transaction, which is committed if the block ends without an error.

        Raises StoreFailed if the database fails; StorageFull if no space is left; Overtaken if a newer coordinator has taken
        over.
        """
        with self._typed_errors(), STORE_SECONDS.labels("write").time():
            async with self._turns.turn(), self._engine.begin() as connection:
                await self._check_generation(connection, locks=True)
                yield connection

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Runs the block in one transaction that only reads. It goes before the writes that wait for the same connection.

        Raises StoreFailed if the database fails; Overtaken if a newer coordinator has taken over.
        """
        with self._typed_errors(), STORE_SECONDS.labels("read").time():
            async with self._read_turns.turn(reads=True), self._reader.begin() as connection:
                await self._check_generation(connection, locks=False)
                yield connection

    @contextlib.contextmanager
    def _typed_errors(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            problem = failure(error)
            if is_broken(error):
                self._fail_stop.stop(problem)
            raise problem from error

    @contextlib.asynccontextmanager
    async def _only_writer(self) -> AsyncIterator[None]:
        """Ends the process if the block finds that the database has rows that this process does not know.

        The database has such rows after a commit whose answer was lost with the connection. A new process reads them.
        """
        try:
            yield
        except StoreFailed as error:
            if isinstance(error.__cause__, IntegrityError):
                self._fail_stop.stop(error)
            raise

    async def _check_generation(self, connection: AsyncConnection, *, locks: bool) -> None:
        """Raises Overtaken if this store's generation is not the newest. With `locks`, the generation stays until the end."""
        if not self._generation:
            return
        chosen = sa.select(t.leadership.c.generation)
        newest = (await connection.execute(chosen.with_for_update() if locks else chosen)).scalar_one()
        if newest != self._generation:
            error = Overtaken(generation=self._generation)
            self._fail_stop.stop(error)
            raise error

    @unbroken
    async def _rows(self, query: sa.Select[Any]) -> Sequence[Row[Any]]:
        async with self.reading() as connection:
            selected: Sequence[Row[Any]] = (await connection.execute(query)).all()
            return selected

    async def _first(self, query: sa.Select[Any]) -> Row[Any] | None:
        selected = await self._rows(query.limit(1))
        return selected[0] if selected else None

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
    async def apply(self, changes: Sequence[Change]) -> None:
        events = [rows.event_values(change) for change in changes]
        inserted, withdrawn = rows.receipts_after(changes)
        versions = [rows.version_values(version) for change in changes for version in change.versions]
        rounds = {(row.run, row.round): rows.round_values(row) for change in changes for row in change.rounds}
        evaluations = rows.evaluations_after(changes)
        messages, ended = rows.messages_after(changes)
        checkpoints = {change.run: asdict(change.checkpoint) for change in changes if change.checkpoint is not None}
        async with self._only_writer(), self.writing() as connection:
            await connection.execute(sa.insert(t.events), events)
            await delete_rows(connection, t.receipts, withdrawn)
            await delete_rows(connection, t.round_messages, ended)
            for table, values in ((t.receipts, inserted), (t.versions, versions)):
                if values:
                    await connection.execute(sa.insert(table), values)
            await replace_rows(connection, t.rounds, ("run", "round"), list(rounds.values()))
            await replace_rows(connection, t.round_messages, ("run", "round", "step", "client"), messages)
            await replace_rows(connection, t.evaluations, ("run", "version", "client"), evaluations)
            await replace_rows(connection, t.checkpoints, ("run",), list(checkpoints.values()))

    async def events(self, run: RunId, after: int, limit: int) -> Sequence[EventRecord]:
        table = t.events
        query = sa.select(table).where(table.c.run == run, table.c.sequence > after)
        selected = await self._rows(query.order_by(table.c.sequence).limit(limit))
        return [EventRecord(row.sequence, row.at_s, row.kind, json.loads(row.facts)) for row in selected]

    async def checkpoint(self, run: RunId) -> Checkpoint | None:
        row = await self._first(sa.select(t.checkpoints).where(t.checkpoints.c.run == run))
        return None if row is None else rows.checkpoint_row(row)

    @unbroken
    async def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        async with self.writing() as connection:
            await replace_rows(connection, t.checkpoints, ("run",), [asdict(checkpoint)])

    async def settled_runs(self, runs: Sequence[RunId]) -> Sequence[SettledRun]:
        table, event, version = t.checkpoints, t.events.c, t.versions
        last = sa.exists().where(event.run == table.c.run, event.sequence == table.c.sequence)
        later = sa.exists().where(event.run == table.c.run, event.sequence > table.c.sequence)
        chosen = await self._rows(sa.select(table).where(table.c.run.in_(runs), last, ~later))
        # One look at the end of an index for each run; all versions of a run may be thousands.
        newest = sa.select(sa.func.max(version.c.version)).where(version.c.run == t.runs.c.id).scalar_subquery()
        heads = sa.select(t.runs.c.id, newest.label("newest")).where(t.runs.c.id.in_(runs)).subquery()
        ends = (version.c.run == heads.c.id) & version.c.version.in_((sa.literal(FIRST_VERSION), heads.c.newest))
        ends_of = defaultdict[RunId, list[VersionRecord]](list)
        for row in await self._rows(sa.select(version).join(heads, ends).order_by(version.c.version)):
            ends_of[RunId(row.run)].append(rows.version_row(row))
        return [
            SettledRun(rows.checkpoint_row(row), versions[0], versions[-1])
            for row in chosen
            if (versions := ends_of[RunId(row.run)])
        ]

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

    async def receipt_counts(self, run: RunId, numbers: Sequence[RoundNumber]) -> Mapping[RoundNumber, int]:
        table = t.receipts
        chosen = table.c.run == run, table.c.round.in_(numbers)
        query = sa.select(table.c.round, sa.func.count().label("updates")).where(*chosen).group_by(table.c.round)
        return {RoundNumber(row.round): row.updates for row in await self._rows(query)}

    async def receipt(self, run: RunId, number: RoundNumber, client: ClientId) -> ReceiptRecord | None:
        table = t.receipts
        query = sa.select(table).where(table.c.run == run, table.c.round == number, table.c.client == client)
        row = await self._first(query)
        return rows.receipt_row(row) if row is not None else None

    async def round_messages(
        self, run: RunId, number: RoundNumber | None = None, step: RoundStep | None = None
    ) -> Sequence[RoundMessage]:
        table = t.round_messages
        query = sa.select(table).where(table.c.run == run)
        query = query if number is None else query.where(table.c.round == number)
        query = query if step is None else query.where(table.c.step == step.value)
        selected = await self._rows(query.order_by(table.c.round, table.c.step, table.c.client))
        return [rows.message_row(row) for row in selected]

    async def version(self, run: RunId, number: ModelVersion) -> VersionRecord | None:
        row = await self._first(sa.select(t.versions).where(t.versions.c.run == run, t.versions.c.version == number))
        return rows.version_row(row) if row is not None else None

    async def versions(self, run: RunId, first: ModelVersion = FIRST_VERSION) -> Sequence[VersionRecord]:
        table = t.versions
        query = sa.select(table).where(table.c.run == run, table.c.version >= first)
        return [rows.version_row(row) for row in await self._rows(query.order_by(table.c.version))]

    async def model_digests(self, run: RunId) -> Sequence[Digest]:
        query = sa.select(t.versions.c.digest).where(t.versions.c.run == run).order_by(t.versions.c.version)
        return [Digest(row.digest) for row in await self._rows(query)]

    @unbroken
    async def named_blobs(self, newest_rounds: int) -> Sequence[RunBlobs]:
        async with self.reading() as connection:
            return await named_blobs(connection, newest_rounds)

    async def evaluations(self, run: RunId, after: int, limit: int) -> Sequence[tuple[int, EvaluationRecord]]:
        table = t.evaluations
        query = sa.select(table).where(table.c.run == run, table.c.position > after)
        selected = await self._rows(query.order_by(table.c.position).limit(limit))
        return [(row.position, rows.evaluation_row(row)) for row in selected]

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

    async def alignment_scores(self, run: RunId, version: ModelVersion) -> Sequence[tuple[GroupName, float | None]]:
        table = t.evaluations
        query = sa.select(table.c.group_name, table.c.alignment_score)
        query = query.where(table.c.run == run, table.c.version == version).order_by(table.c.group_name)
        return [(GroupName(row.group_name), row.alignment_score) for row in await self._rows(query)]

    @unbroken
    async def save_client(self, client: ClientRecord) -> None:
        values = rows.client_values(client)
        changed = {name: value for name, value in values.items() if name != "created_s"}
        async with self.writing() as connection:
            update = sa.update(t.clients).where(t.clients.c.client == client.client).values(changed)
            if (await connection.execute(update)).rowcount == 0:
                await connection.execute(sa.insert(t.clients).values(values))

    @unbroken
    async def save_last_seen(self, times_s: Mapping[ClientId, float]) -> None:
        table = t.clients
        update = sa.update(table).where(table.c.client == sa.bindparam("who")).values(last_seen_s=sa.bindparam("at_s"))
        async with self.writing() as connection:
            await connection.execute(update, [{"who": client, "at_s": at_s} for client, at_s in times_s.items()])

    async def clients(self) -> Sequence[ClientRecord]:
        selected = await self._rows(sa.select(t.clients).order_by(t.clients.c.client))
        return [rows.client_row(row) for row in selected]

    async def close(self) -> None:
        async with self._turns.turn():  # waits for transactions whose callers were cancelled
            await self._engine.dispose()
        async with self._read_turns.turn():
            await self._reader.dispose()


async def replace_rows(
    connection: AsyncConnection, table: sa.Table, key: tuple[str, ...], values: Sequence[dict[str, Any]]
) -> None:
    """Inserts rows. Where the table has a row with the same key, the new row replaces the old row.

    key: the names of the key's columns. values: of the new rows by column; no two have the same key.
    """
    if values:
        await delete_rows(connection, table, [{name: row[name] for name in key} for row in values])
        await connection.execute(sa.insert(table), values)


async def delete_rows(connection: AsyncConnection, table: sa.Table, keys: Sequence[dict[str, Any]]) -> None:
    """Deletes the rows that have one of the keys. keys: values by column, all of the same columns."""
    if keys:
        same = (table.c[name] == sa.bindparam(f"key_{name}") for name in keys[0])
        await connection.execute(
            sa.delete(table).where(*same), [{f"key_{name}": value for name, value in key.items()} for key in keys]
        )
