"""The part of a support bundle that comes from the coordinator's database. The coordinator may run or be stopped."""

import re
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from pluralllm.server.process.config import ServerConfig
from pluralllm.server.process.fail_stop import FailStop
from pluralllm.server.storage import schema as t
from pluralllm.server.storage.by_url import database_url
from pluralllm.server.storage.snapshot import tables_with_rows
from pluralllm.server.storage.sql_engine import new_engine
from pluralllm.server.storage.sql_membership import SqlMembership
from pluralllm.server.storage.sql_store import SqlStore
from pluralllm.server.storage.state_directory import StateDirectory
from pluralllm.server.storage.store import RunRecord

NEWEST_ROUNDS = 50  # rounds of each run in the bundle
NEWEST_EVENTS = 500


def passwords_of(config: ServerConfig) -> list[str]:
    """Returns all forms of the database's password, so that the caller can remove each form from a text.

    The forms are the plain password and the password as it is escaped in the URL. The list is empty if the
    configuration has no database URL.
    """
    if config.database_url is None:
        return []
    text = config.database_url.get_secret_value()
    url = sa.make_url(text)
    in_query = url.query.get("password", ())
    written = re.findall(r"://[^:@]*:(.+)@", text)
    return [str(url.password or ""), *written, *([in_query] if isinstance(in_query, str) else in_query)]


async def read_database(config: ServerConfig) -> dict[str, Any]:
    """Returns the runs, clients, members and certificates in the database as values that can be written as JSON.

    The coordinator may run meanwhile. The function does not migrate the schema. Raises StoreFailed if the
    database cannot be read.
    """
    url = database_url(config, StateDirectory(config.state_dir))
    if not await tables_with_rows(url):
        return {"runs": [], "members": []}
    engine = new_engine(url)
    store = SqlStore(engine, FailStop())
    try:
        everyone = await SqlMembership(store).everyone()
        return {
            "runs": [await _run(store, run) for run in await store.runs()],
            "clients": [asdict(client) for client in await store.clients()],
            "members": [asdict(member) for member in everyone.members],
            "certificates": [
                {"member": issued.member, "not_after_s": issued.not_after_s, "revoked_s": issued.revoked_s}
                for issued in everyone.certificates
            ],
        }
    finally:
        await engine.dispose()


async def _run(store: SqlStore, run: RunRecord) -> dict[str, Any]:
    async with store.reading() as connection:
        newest = sa.select(sa.func.max(t.events.c.sequence)).where(t.events.c.run == run.id)
        events = (await connection.execute(newest)).scalar() or 0
    return {
        "name": run.id,
        "created_s": run.created_s,
        "spec_sha256": run.spec_sha256,
        "spec": run.spec_json.decode(),
        "versions": len(await store.model_digests(run.id)),
        "newest_rounds": [asdict(record) for record in await store.rounds(run.id, None, NEWEST_ROUNDS)],
        "events": events,
        "newest_events": [
            asdict(event) for event in await store.events(run.id, max(0, events - NEWEST_EVENTS), NEWEST_EVENTS)
        ],
    }
