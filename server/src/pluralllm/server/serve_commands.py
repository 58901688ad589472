"""The commands `pluralllm-server serve | healthy | config`."""

import asyncio
import contextlib
from pathlib import Path
from typing import Annotated

import typer

from pluralllm.common.process.configuration import load_config, origins_of
from pluralllm.common.process.console import Json, print_config
from pluralllm.common.process.imports import without_collecting
from pluralllm.common.process.service_options import LogFormatOption, NotifySocket, WatchdogUsec
from pluralllm.common.process.supervisor import Supervisor, check_alive
from pluralllm.server.process.config import ServerConfig

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="TOML file; flags and PLURALLLM_SERVER_* win over it.")
]
StateDir = Annotated[Path | None, typer.Option(help="Folder for runs, models and updates.")]
Listen = Annotated[str | None, typer.Option(help="host:port to bind for members; port 0 takes a free port.")]
EnrolmentListen = Annotated[str | None, typer.Option(help="host:port to bind for members that join.")]
PageListen = Annotated[str | None, typer.Option(help="host:port of the read-only page for people, on loopback.")]
MetricsListen = Annotated[str | None, typer.Option(help="host:port where Prometheus reads /metrics.")]
PlainText = Annotated[
    bool | None, typer.Option("--plain-text", help="No certificates; on the loopback interface only, for trials.")
]
Origin = Annotated[bool, typer.Option("--origin", help="Show where each value comes from.")]


def serve(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    listen: Listen = None,
    enrolment_listen: EnrolmentListen = None,
    page_listen: PageListen = None,
    metrics_listen: MetricsListen = None,
    plain_text: PlainText = None,
    log_format: LogFormatOption = None,
    notify_socket: NotifySocket = None,
    watchdog_usec: WatchdogUsec = None,
) -> None:
    """Run the coordinator until SIGTERM or Ctrl-C."""
    with without_collecting():
        from pluralllm.server import composition  # noqa: PLC0415 - all rooms come with it; help needs none
    from pluralllm.common.process.foreign_output import foreign_output_logged  # noqa: PLC0415
    from pluralllm.common.process.logs import configure_logs, log_form  # noqa: PLC0415
    from pluralllm.server.process.allocator import use_one_arena  # noqa: PLC0415
    from pluralllm.server.process.instruments import LOG_LINES_LOST  # noqa: PLC0415
    from pluralllm.server.process.open_files import raise_limit  # noqa: PLC0415

    flags = {
        "state_dir": state_dir,
        "listen": listen,
        "enrolment_listen": enrolment_listen,
        "page_listen": page_listen,
        "metrics_listen": metrics_listen,
        "plain_text": plain_text,
        "log_format": log_format,
    }
    settings = load_config(ServerConfig, config, flags)
    form = log_form(settings.log_format, settings.log_file)
    configure_logs(form=form, level=settings.log_level, on_loss=LOG_LINES_LOST.inc, file=settings.log_file)
    use_one_arena()
    raise_limit()
    supervisor = Supervisor(settings.state_dir, notify_socket, watchdog_usec)
    with foreign_output_logged() if form == "json" else contextlib.nullcontext():
        asyncio.run(composition.serve(settings, supervisor))


def healthy(config: ConfigFile = None, state_dir: StateDir = None) -> None:
    """Check whether the configured coordinator serves or waits as a standby. A container can use it as health check."""
    check_alive(load_config(ServerConfig, config, {"state_dir": state_dir}).state_dir)


def show_config(config: ConfigFile = None, origin: Origin = False, as_json: Json = False) -> None:
    """Show the coordinator's effective configuration."""
    values = load_config(ServerConfig, config, {}).model_dump(mode="json")
    print_config(values, origins_of(ServerConfig, config) if origin else None, as_json=as_json)
