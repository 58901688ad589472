"""`pluralllm-server support-bundle`: what somebody who helps needs to see of a coordinator, running or not."""

import asyncio
import re
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import sqlalchemy as sa
import typer

from pluralllm.common.process.configuration import load_config
from pluralllm.common.process.support_bundle import bundle_name, parts_of, without_secrets, write_bundle
from pluralllm.server.commands.doctor import checks_of
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

NEWEST_ROUNDS = 50  # of each run
NEWEST_EVENTS = 500


def support_bundle(
    file: Annotated[Path | None, typer.Argument(help="The zip file to write; default: a name with the time.")] = None,
    log: Annotated[list[Path] | None, typer.Option(help="A log whose end goes in as well; repeatable.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="The coordinator's TOML file.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="Where the coordinator keeps its state.")] = None,
) -> None:
    """Gather versions, configuration, checks, metrics, runs and events in one zip file, without keys, tokens or passwords."""
    settings = load_config(ServerConfig, config, {"state_dir": state_dir})
    path = file or Path(bundle_name("pluralllm-server"))
    parts = parts_of(settings, config, settings.state_dir, lambda: checks_of(settings))
    parts["database.json"] = lambda: asyncio.run(_database(settings))
    redacted = partial(without_secrets, known=_passwords(settings))
    write_bundle(path, parts, log or [], redacted, redacted)
    typer.echo(f"{path}: look through it before you send it")


def _passwords(config: ServerConfig) -> list[str]:
    """As the URL has them, and as they are."""
    if config.database_url is None:
        return []
    text = config.database_url.get_secret_value()
    url = sa.make_url(text)
    in_query = url.query.get("password", ())
    written = re.findall(r"://[^:@]*:(.+)@", text)
    return [str(url.password or ""), *written, *([in_query] if isinstance(in_query, str) else in_query)]


async def _database(config: ServerConfig) -> dict[str, Any]:
    """Read beside a coordinator that serves; nothing is migrated. Raises StoreFailed."""
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
                {"member": each.member, "not_after_s": each.not_after_s, "revoked_s": each.revoked_s}
                for each in everyone.certificates
            ],
        }
    finally:
        await engine.dispose()


async def _run(store: SqlStore, run: RunRecord) -> dict[str, Any]:
    async with store.writing("read") as connection:
        newest = sa.select(sa.func.max(t.events.c.sequence)).where(t.events.c.run == run.id)
        events = (await connection.execute(newest)).scalar() or 0
    return {
        "name": run.id,
        "created_s": run.created_s,
        "spec_sha256": run.spec_sha256,
        "spec": run.spec_json.decode(),
        "versions": len(await store.model_digests(run.id)),
        "newest_rounds": [asdict(each) for each in await store.rounds(run.id, None, NEWEST_ROUNDS)],
        "events": events,
        "newest_events": [
            asdict(each) for each in await store.events(run.id, max(0, events - NEWEST_EVENTS), NEWEST_EVENTS)
        ],
    }
