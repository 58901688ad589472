"""pluralllm-client: the composition root of the daemon's process, and its command line."""

import asyncio
import json
import signal
from pathlib import Path
from typing import Annotated

import structlog
import typer
from rich.console import Console
from rich.table import Table

from pluralllm.client import data_commands, doctor
from pluralllm.client.config import ClientConfig
from pluralllm.client.policy import load_policy
from pluralllm.client.private_data import read_group
from pluralllm.common.configuration import check_loopback, load_config
from pluralllm.common.errors import ModelUnavailable
from pluralllm.common.exits import EXIT_CODES, run_command
from pluralllm.common.extras import need_torch
from pluralllm.common.ids import ClientId
from pluralllm.common.lock import DirectoryLock
from pluralllm.common.logs import configure_logs

log = structlog.get_logger()

app = typer.Typer(
    name="pluralllm-client",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A partner's daemon: trains on a private file, sends weight deltas only.\n\n" + EXIT_CODES,
)
app.add_typer(data_commands.app, name="data")
app.command("doctor")(doctor.doctor)

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="TOML file; flags and PLURALLLM_CLIENT_* win over it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def run(
    config: ConfigFile = None,
    coordinator: Annotated[str | None, typer.Option(help="host:port of the coordinator.")] = None,
    data: Annotated[Path | None, typer.Option(help="The private file: JSONL or Parquet.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="Where the outbox and the embedding cache are kept.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cuda, cuda:N, mps or cpu.")] = None,
    exit_when_run_over: Annotated[bool | None, typer.Option(help="End with the first run that ends.")] = None,
) -> None:
    """Take part in a federation until SIGTERM or Ctrl-C."""
    flags = {
        "coordinator": coordinator,
        "data": data,
        "state_dir": state_dir,
        "device": device,
        "exit_when_run_over": exit_when_run_over,
    }
    settings = load_config(ClientConfig, config, flags)
    check_loopback(settings.coordinator)
    configure_logs(form=settings.log_format, level=settings.log_level)
    asyncio.run(_run(settings))


async def _run(config: ClientConfig) -> None:
    from pluralllm.client.daemon import Daemon  # noqa: PLC0415 - gRPC takes a moment; help does not need it
    from pluralllm.client.transport import Transport  # noqa: PLC0415
    from pluralllm.client.worker_process import WorkerProcess  # noqa: PLC0415

    need_torch()
    policy = load_policy(config.policy)
    questions = len(read_group(config.data))
    folder = config.embedding_model_path
    if folder is not None and not (folder / "config.json").is_file():
        raise ModelUnavailable(model=str(folder), problem="it is not a folder with a config.json")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    structlog.contextvars.bind_contextvars(client=config.client_id)
    with DirectoryLock(config.state_dir.absolute()):
        transport = Transport(config.coordinator, ClientId(config.client_id))
        try:
            await Daemon(config, policy, questions, transport, WorkerProcess()).run(stop)
        finally:
            await transport.close()


@app.command("config")
def show_config(config: ConfigFile = None, as_json: Json = False) -> None:
    """Show the effective configuration."""
    values = load_config(ClientConfig, config, {}).model_dump(mode="json")
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
