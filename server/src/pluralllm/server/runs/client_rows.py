"""Writes the database rows of the clients that call Hello, and only if a row has changed."""

from dataclasses import replace

from pluralllm.common.words.ids import ClientId
from pluralllm.server.storage.store import ClientRecord, Store

SEEN_AGAIN_S = 600.0  # a row whose only news is the time of the last Hello is written this often at most


class ClientRows:
    """The rows of the clients that have called Hello, as the database has them.

    A client that calls Hello again and again causes no write, so that it does not delay the writes of others.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._written: dict[ClientId, ClientRecord] = {}

    async def start(self) -> None:
        """Reads the rows from the database."""
        self._written = {record.client: record for record in await self._store.clients()}

    async def save(self, record: ClientRecord) -> bool:
        """Makes a client's row durable unless the database has it. Returns whether the row was written.

        A row that differs only in its times is up to date if it was written within SEEN_AGAIN_S seconds.
        """
        old = self._written.get(record.client)
        if old is not None and 0 <= record.last_seen_s - old.last_seen_s < SEEN_AGAIN_S:
            seen_now = replace(old, created_s=record.created_s, last_seen_s=record.last_seen_s)
            if record == seen_now:
                return False
        await self._store.save_client(record)
        self._written[record.client] = record
        return True
