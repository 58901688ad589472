"""pluralllm-server: the composition root of the coordinator's process, and its command line."""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import structlog
import typer
from rich.console import Console
from rich.table import Table

from pluralllm.common import __version__
from pluralllm.common.clock import Clock, SystemClock
from pluralllm.common.configuration import load_config
from pluralllm.common.exits import EXIT_CODES, run_command
from pluralllm.common.files import write_durably
from pluralllm.common.logs import configure_logs
from pluralllm.server.audit import Report
from pluralllm.server.audit import audit as audit_state
from pluralllm.server.blobs import LocalBlobs
from pluralllm.server.config import ServerConfig
from pluralllm.server.coordinator import Coordinator, Timing
from pluralllm.server.federation import Federation
from pluralllm.server.intake import Intake
from pluralllm.server.operations import Operations
from pluralllm.server.serving import start_server
from pluralllm.server.sql_store import open_store
from pluralllm.server.state_directory import StateDirectory
from pluralllm.server.uploads import Uploads

STOP_GRACE_S = 5.0
log = structlog.get_logger()

app = typer.Typer(
    name="pluralllm-server",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="The coordinator of a PluralLLM federation.\n\n" + EXIT_CODES,
)
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="TOML file; flags and PLURALLLM_SERVER_* win over it.")
]
StateDir = Annotated[Path | None, typer.Option(help="Where runs, models and updates are kept.")]
Listen = Annotated[str | None, typer.Option(help="host:port on the loopback interface; port 0 takes a free one.")]
LogFormat = Annotated[str | None, typer.Option(help="json or console.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def serve(
    config: ConfigFile = None, state_dir: StateDir = None, listen: Listen = None, log_format: LogFormat = None
) -> None:
    """Run the coordinator until SIGTERM or Ctrl-C."""
    settings = load_config(ServerConfig, config, {"state_dir": state_dir, "listen": listen, "log_format": log_format})
    configure_logs(form=settings.log_format, level=settings.log_level)
    asyncio.run(_serve(settings))


@contextlib.asynccontextmanager
async def running(config: ServerConfig, clock: Clock) -> AsyncIterator[tuple[Coordinator, str]]:
    """A serving coordinator and its address, until the block ends: everything joined, nothing started twice."""
    with StateDirectory(config.state_dir) as state:
        store = await open_store(state.database_url)
        try:
            timing = Timing(lease_s=config.lease_s, silence_s=config.silence_s, keep_updates=config.keep_updates)
            coordinator = Coordinator(store, LocalBlobs(state.blobs), state.scratch, clock, timing)
            intake = Intake(coordinator, Uploads(state.uploads))
            await coordinator.start()
            tending = asyncio.create_task(intake.tend())
            federation = Federation(coordinator, intake, config.poll_hold_s, config.chunk_idle_s)
            server, address = await start_server(config, federation, Operations(coordinator))
            write_durably(state.path / "address", address.encode())
            try:
                yield coordinator, address
            finally:
                coordinator.drain()
                await server.stop(STOP_GRACE_S)
                tending.cancel()
                await coordinator.stop()
        finally:
            await store.close()


async def _serve(config: ServerConfig) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(config, SystemClock()) as (_, address):
        log.info("server.started", address=address, state_dir=str(config.state_dir), version=__version__)
        await stop.wait()
        log.info("server.stopping")
    log.info("server.stopped")


@app.command()
def audit(config: ConfigFile = None, state_dir: StateDir = None, as_json: Json = False) -> None:
    """Check everything on disk against the invariants: the server must be stopped."""
    settings = load_config(ServerConfig, config, {"state_dir": state_dir})
    report = asyncio.run(_audit(settings))
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2))
    else:
        for line in report.lines():
            typer.echo(line)
    if not report.is_clean:
        raise typer.Exit(3)


async def _audit(config: ServerConfig) -> Report:
    with StateDirectory(config.state_dir) as state:
        store = await open_store(state.database_url)
        try:
            return await audit_state(store, LocalBlobs(state.blobs), state.scratch)
        finally:
            await store.close()


@app.command("config")
def show_config(config: ConfigFile = None, as_json: Json = False) -> None:
    """Show the effective configuration."""
    values = load_config(ServerConfig, config, {}).model_dump(mode="json")
    if as_json:
        typer.echo(json.dumps(values, indent=2))
        return
    table = Table("key", "value", box=None)
    for key, value in values.items():
        table.add_row(key, str(value))
    Console().print(table)


def main() -> None:
    """The entry point."""
    run_command(app)


if __name__ == "__main__":
    main()
