"""`pluralllm-server backup` and `restore`: what a person gives, and what they are told."""

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pluralllm.common.process.configuration import load_config
from pluralllm.common.process.console import Json, print_json, showing_progress
from pluralllm.common.process.json_forms import BACKUP
from pluralllm.common.process.logs import configure_logs
from pluralllm.server.process.config import ServerConfig

if TYPE_CHECKING:
    from pluralllm.server.commands.backup import Contents

ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file; flags and PLURALLLM_SERVER_* win.")]
StateDir = Annotated[Path | None, typer.Option(help="The coordinator's state directory.")]


def backup(
    directory: Annotated[Path, typer.Argument(help="A new directory; it gets its name when the backup is whole.")],
    config: ConfigFile = None,
    state_dir: StateDir = None,
    as_json: Json = False,
) -> None:
    """Copy records, blobs and authority of a coordinator, which may be running, into a new directory, and verify it.

    The backup holds the authority's keys: keep it as secret as the state directory.
    """
    from pluralllm.server.commands.backup import back_up  # noqa: PLC0415 - the database comes with it

    settings = load_config(ServerConfig, config, {"state_dir": state_dir})
    configure_logs(form="console", level="WARNING")
    with showing_progress("reading the records") as tell:
        found = asyncio.run(back_up(settings, directory.absolute(), tell))
    _say(found, directory, "backed up into", as_json=as_json)
    if found.has_authority and not as_json:
        key = "the keys of root and issuer" if found.has_root_key else "the issuer's key"
        typer.echo(f"It holds the authority with {key}: keep it as secret as the state directory.")


def restore(
    directory: Annotated[Path, typer.Argument(help="A backup, or the state directory of a stopped coordinator.")],
    config: ConfigFile = None,
    state_dir: StateDir = None,
    as_json: Json = False,
) -> None:
    """Verify a backup and copy it into the database, blob store and state directory of the configuration, which must be empty.

    The kinds may differ: so a federation moves from SQLite and files to PostgreSQL and a bucket, or back.
    """
    from pluralllm.server.commands.restore import restore as restore_from  # noqa: PLC0415 - the database comes with it

    settings = load_config(ServerConfig, config, {"state_dir": state_dir})
    configure_logs(form="console", level="WARNING")
    with showing_progress("reading the records") as tell:
        found = asyncio.run(restore_from(settings, directory.absolute(), time.time(), tell))
    _say(found, directory, "restored from", as_json=as_json)
    if not as_json:
        typer.echo("Next: pluralllm-server serve. What happened after the backup is done again.")


def _say(found: "Contents", directory: Path, what: str, *, as_json: bool) -> None:
    if as_json:
        facts = {
            "directory": str(directory),
            "blobs": found.blobs,
            "blob_bytes": found.blob_bytes,
            "authority": found.has_authority,
            "root_key": found.has_root_key,
            "audit": found.report.to_json(),
        }
        print_json(BACKUP, facts)
        return
    checked = found.report.lines()
    typer.echo(f"{what} {directory}: {found.blobs} blobs, {found.blob_bytes / 1e6:.1f} MB")
    typer.echo(f"verified: {'; '.join(checked)}")
