"""Commands `backup` and `restore`: their options and their output."""

import asyncio
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pluralllm.common.process.configuration import load_config
from pluralllm.common.process.console import Json, print_json, say, showing_progress
from pluralllm.common.process.json_forms import BACKUP
from pluralllm.common.process.logs import configure_logs
from pluralllm.server.process.config import ServerConfig

if TYPE_CHECKING:
    from pluralllm.server.commands.backup import Contents

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="TOML file; flags and PLURALLLM_SERVER_* win over it.")
]
StateDir = Annotated[Path | None, typer.Option(help="The coordinator's state directory.")]


def backup(
    directory: Annotated[Path, typer.Argument(help="New directory; it gets its name when the backup is complete.")],
    config: ConfigFile = None,
    state_dir: StateDir = None,
    as_json: Json = False,
) -> None:
    """Copy a coordinator's database rows, blobs and authority into a new directory, and verify the copy.

    The coordinator may run meanwhile. The backup holds the authority's keys: keep the backup as secret as the state
    directory.
    """
    from pluralllm.server.commands.backup import back_up  # noqa: PLC0415 - the database comes with it

    settings = load_config(ServerConfig, config, {"state_dir": state_dir})
    configure_logs(form="console", level="WARNING")
    with showing_progress("reading the records") as report_progress:
        contents = asyncio.run(back_up(settings, directory.absolute(), report_progress))
    _print_result(contents, directory, "backed up into", as_json=as_json)
    if contents.has_authority and not as_json:
        key = "the keys of root and issuer" if contents.has_root_key else "the issuer's key"
        say(f"It holds the authority with {key}: keep it as secret as the state directory.")


def restore(
    directory: Annotated[Path, typer.Argument(help="Backup, or state directory of a stopped coordinator.")],
    config: ConfigFile = None,
    state_dir: StateDir = None,
    as_json: Json = False,
) -> None:
    """Verify a backup and copy it into the configured database, blob store and state directory, which must be empty.

    The configuration may name other kinds of stores than the backup has. So a restore can move a federation from SQLite and
    files to PostgreSQL and a bucket, or back.
    """
    from pluralllm.server.commands.restore import restore as restore_from  # noqa: PLC0415 - the database comes with it

    settings = load_config(ServerConfig, config, {"state_dir": state_dir})
    configure_logs(form="console", level="WARNING")
    with showing_progress("reading the records") as report_progress:
        contents = asyncio.run(restore_from(settings, directory.absolute(), time.time(), report_progress))
    _print_result(contents, directory, "restored from", as_json=as_json)
    if not as_json:
        say(next_step(config, state_dir))


def next_step(config: Path | None, state_dir: Path | None) -> str:
    """Returns what to do after a restore. The command has a line of its own, so that nothing is copied with it."""
    return f"What happened after the backup is done again. Next:\n    {next_command(config, state_dir)}"


def next_command(config: Path | None, state_dir: Path | None) -> str:
    """Returns the command that serves what was restored: it needs the same options as `restore`."""
    options = {"--config": config, "--state-dir": state_dir}
    parts = (part for name, path in options.items() if path is not None for part in (name, str(path)))
    return shlex.join(("pluralllm-server", "serve", *parts))


def _print_result(contents: "Contents", directory: Path, what: str, *, as_json: bool) -> None:
    if as_json:
        facts = {
            "directory": str(directory),
            "blobs": contents.blobs,
            "blob_bytes": contents.blob_bytes,
            "authority": contents.has_authority,
            "root_key": contents.has_root_key,
            "audit": contents.report.to_json(),
        }
        print_json(BACKUP, facts)
        return
    checked = contents.report.lines()
    say(f"{what} {directory}: {contents.blobs} blobs, {contents.blob_bytes / 1e6:.1f} MB")
    say(f"verified: {'; '.join(checked)}")
