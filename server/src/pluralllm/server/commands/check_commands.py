"""Commands `doctor`, `verify` and `support-bundle`, which read the coordinator's state and do not change it."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pluralllm.common.process.configuration import load_config
from pluralllm.common.process.console import Json, print_checks, print_json, say, showing_progress
from pluralllm.common.process.exits import USAGE
from pluralllm.common.process.json_forms import VERIFICATION
from pluralllm.common.process.support_bundle import bundle_name, parts_of, without_secrets, write_bundle
from pluralllm.server.process.config import ServerConfig

ConfigFile = Annotated[Path | None, typer.Option("--config", help="The coordinator's TOML file.")]
StateDir = Annotated[Path | None, typer.Option(help="The coordinator's state directory.")]


def doctor(config: ConfigFile = None, state_dir: StateDir = None, as_json: Json = False) -> None:
    """Check state directory, secrets, certificates, names, ports and disk. Exit code 3 if something is wrong."""
    from pluralllm.server.commands.doctor import checks_of  # noqa: PLC0415 - the database comes with it

    if not print_checks(checks_of(load_config(ServerConfig, config, {"state_dir": state_dir})), as_json=as_json):
        raise typer.Exit(3)


def verify(config: ConfigFile = None, state_dir: StateDir = None, as_json: Json = False) -> None:
    """Check all stored data: no update is lost or counted twice, and every hash is right. The server must be stopped."""
    from pluralllm.server.commands.verify import verify_stopped  # noqa: PLC0415 - the database comes with it

    settings = load_config(ServerConfig, config, {"state_dir": state_dir})
    with showing_progress("averaging again and comparing"):
        report = asyncio.run(verify_stopped(settings))
    if as_json:
        print_json(VERIFICATION, report.to_json())
    else:
        for line in report.lines():
            say(line)
    if not report.is_clean:
        raise typer.Exit(3)


def audit() -> None:
    """Report that this command is now named `verify`. Another command, `pluralllm audit`, shows who did what."""
    say("error: pluralllm-server audit is now pluralllm-server verify, with the same options.", err=True)
    raise typer.Exit(USAGE)


def support_bundle(
    file: Annotated[Path | None, typer.Argument(help="Zip file to write; default: a name with the time.")] = None,
    log: Annotated[list[Path] | None, typer.Option(help="Log file whose end is added; repeatable.")] = None,
    config: ConfigFile = None,
    state_dir: StateDir = None,
) -> None:
    """Gather versions, configuration, checks, metrics, runs and events in one zip file, without keys, tokens or passwords."""
    from pluralllm.server.commands.doctor import checks_of  # noqa: PLC0415 - the database comes with these
    from pluralllm.server.commands.support_bundle import passwords_of, read_database  # noqa: PLC0415

    settings = load_config(ServerConfig, config, {"state_dir": state_dir})
    path = file or Path(bundle_name("pluralllm-server"))
    parts = parts_of(settings, config, settings.state_dir, lambda: checks_of(settings))
    parts["database.json"] = lambda: asyncio.run(read_database(settings))
    redacted = partial(without_secrets, secrets=passwords_of(settings))
    write_bundle(path, parts, log or [], redacted, redacted)
    say(f"{path}: look through it before you send it")
