"""Writes the database rows of the clients that call Hello, and only if a row has changed."""

import asyncio
from collections import defaultdict
from dataclasses import replace

from pluralllm.common.words.ids import ClientId
from pluralllm.server.storage.store import ClientRecord, Store

SEEN_AGAIN_S = 600.0  # a row whose only news is the time of the last Hello is written this often at most


class ClientRows:
    """The rows of the clients that have called Hello, as the database has them.

    A client that calls Hello again and again causes no write, so that it does not delay the writes of others. Of a client that
    calls Hello many times at once, at most one write waits at a time.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._written: dict[ClientId, ClientRecord] = {}
        self._writing: defaultdict[ClientId, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def start(self) -> None:
        """Reads the rows from the database."""
        self._written = {record.client: record for record in await self._store.clients()}

    async def save(self, record: ClientRecord) -> bool:
        """Makes a client's row durable unless the database has it. Returns whether the row was written.

        A row that differs only in its times is up to date if it was written within SEEN_AGAIN_S seconds.
        """
        async with self._writing[record.client]:
            if self._is_up_to_date(record):
                return False
            await self._store.save_client(record)
            self._written[record.client] = record
            return True

    def _is_up_to_date(self, record: ClientRecord) -> bool:
        old = self._written.get(record.client)
        if old is None or not 0 <= record.last_seen_s - old.last_seen_s < SEEN_AGAIN_S:
            return False
        return record == replace(old, created_s=record.created_s, last_seen_s=record.last_seen_s)
