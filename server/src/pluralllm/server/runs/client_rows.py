"""Keeps the rows of the clients that have called Hello, and writes them only if they have changed."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import structlog

from pluralllm.common.errors.tree import PluralError
from pluralllm.common.process.clock import Clock
from pluralllm.common.words.ids import ClientId
from pluralllm.server.runs.sessions import Session
from pluralllm.server.storage.store import ClientRecord, Store

log = structlog.get_logger()

SEEN_AGAIN_S = 600.0  # the stored time of a client's last Hello may be this much older than the call
WRITTEN_EACH_S = 10.0  # pause between two writes of times
WRITTEN_AT_ONCE = 1000  # times in one transaction; other transactions wait for it


def row_of(session: Session) -> ClientRecord:
    """Returns the row of the client that has opened a session. Its first Hello may have been earlier than this one."""
    return ClientRecord(
        client=session.client,
        group=session.group,
        role=session.role,
        training_questions=session.training_questions,
        software_version=session.software_version,
        created_s=session.last_seen_s,
        last_seen_s=session.last_seen_s,
        noise=session.noise,
    )


class ClientRows:
    """The rows of the clients that have called Hello, as the database has them.

    A client that calls Hello again and again causes no write, so that it does not delay the writes of others. Of a client that
    calls Hello many times at once, at most one write waits at a time. A call that brings no news but its time waits for no
    write at all: after a restart, the Hellos of ten thousand clients cost some transactions, and not ten thousand.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._rows: dict[ClientId, ClientRecord] = {}
        self._sorted: tuple[ClientRecord, ...] | None = None
        self._seen_s: dict[ClientId, float] = {}  # times that are not written yet
        self._writing: defaultdict[ClientId, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def start(self) -> None:
        """Reads the rows from the database."""
        self._rows = {record.client: record for record in await self._store.clients()}
        self._sorted = None

    def get(self, client: ClientId) -> ClientRecord | None:
        return self._rows.get(client)

    def all(self) -> Sequence[ClientRecord]:
        """Returns all rows, sorted by client."""
        if self._sorted is None:
            self._sorted = tuple(record for _, record in sorted(self._rows.items()))
        return self._sorted

    async def save(self, record: ClientRecord) -> bool:
        """Makes a client's row durable unless the database has it. Returns whether the row was written.

        A row that differs only in its times is up to date. If its time is more than SEEN_AGAIN_S seconds newer than the stored
        one, `write_times` writes it later.
        """
        async with self._writing[record.client]:
            old = self._rows.get(record.client)
            if old is None or record != replace(old, created_s=record.created_s, last_seen_s=record.last_seen_s):
                await self._store.save_client(record)
                self._seen_s.pop(record.client, None)
                self._rows[record.client] = record if old is None else replace(record, created_s=old.created_s)
                self._sorted = None
                return True
            if not 0 <= record.last_seen_s - old.last_seen_s < SEEN_AGAIN_S:
                self._seen_s[record.client] = record.last_seen_s
            return False

    async def keep_times(self) -> None:
        """Writes new times again and again, until its task is cancelled. A write that fails is tried again."""
        while True:
            await self._clock.sleep(WRITTEN_EACH_S)
            try:
                await self.write_times()
            except PluralError as error:
                log.warning("clients.times_not_written", problem=str(error))

    async def write_times(self) -> None:
        """Writes the times that are not written yet, in as few transactions as possible."""
        while times := dict(list(self._seen_s.items())[:WRITTEN_AT_ONCE]):
            await self._store.save_last_seen(times)
            for client, at_s in times.items():
                if self._seen_s.get(client) == at_s:
                    del self._seen_s[client]
                if (row := self._rows.get(client)) is not None:
                    self._rows[client] = replace(row, last_seen_s=at_s)
            self._sorted = None
