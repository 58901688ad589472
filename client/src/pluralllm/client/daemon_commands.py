"""The commands `pluralllm-client join | run | healthy | config`, and the place where the daemon's objects are made and joined."""

import asyncio
import contextlib
import functools
import shlex
from pathlib import Path
from typing import Annotated

import stamina.instrumentation
import structlog
import typer

from pluralllm.client import privacy_commands
from pluralllm.client.answers_in_use import answers_in_use
from pluralllm.client.data.answers import shows_respondents
from pluralllm.client.data.private_file import PrivateFile
from pluralllm.client.disclosure.missing_keys import report_missing_keys
from pluralllm.client.disclosure.policy import load_policy, new_policy
from pluralllm.client.joining.partner import COMMAND, load_partner
from pluralllm.client.process.config import ClientConfig, JoinConfig
from pluralllm.client.process.instruments import REGISTRY, RETRIES
from pluralllm.common.errors.tree import InvalidArgument, ModelUnavailable
from pluralllm.common.process.configuration import load_config, origins_of
from pluralllm.common.process.console import Json, print_config, say
from pluralllm.common.process.extras import need_torch
from pluralllm.common.process.files import make_folder, write_durably
from pluralllm.common.process.foreign_output import foreign_output_logged
from pluralllm.common.process.lifetime import STOP_SIGNALS, ignore_stop_signals
from pluralllm.common.process.lock import DirectoryLock
from pluralllm.common.process.logs import LogFormatOption, configure_logs, log_form
from pluralllm.common.process.model_folder import is_model_folder
from pluralllm.common.process.scrape_port import scrape_port
from pluralllm.common.process.supervisor import NotifySocket, Supervisor, WatchdogUsec, check_alive
from pluralllm.common.words.roles import MemberRole

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="A TOML file; flags and PLURALLLM_CLIENT_* win over it.")
]
StateDir = Annotated[Path | None, typer.Option(help="The folder for the outbox, the embedding cache and other state.")]
Origin = Annotated[bool, typer.Option("--origin", help="Show where each value comes from.")]


def join_federation(
    invite: Annotated[
        str, typer.Argument(help="The invite file, its one line, or - to read the line from standard input.")
    ],
    config: ConfigFile = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="The daemon's state directory; the key goes to its folder identity/.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The private file, whose answers are then released with noise, once.")
    ] = None,
    without_noise: Annotated[
        bool, typer.Option("--without-noise", help="Write a policy whose client uses the true answers.")
    ] = False,
) -> None:
    """Join a federation: make a key, use the invite, store the certificate, release the answers of --data with noise.

    The command may be repeated; what is done stays done.
    """
    from pluralllm.client.joining.joining import certificate_in, join, joined_text, read_invite  # noqa: PLC0415 - gRPC takes a moment
    from pluralllm.client.keeping.history import History  # noqa: PLC0415

    paths = load_config(JoinConfig, config, {"state_dir": state_dir})
    policy = paths.policy or paths.state_dir / "policy.toml"
    if without_noise and policy.exists() and load_policy(policy).privacy is not None:
        raise InvalidArgument(field="--without-noise", problem=f"{policy} asks for noise; remove its table [privacy]")
    if data is not None:
        shows_respondents(data)  # a file with problems is refused before the invite is used
    folder = paths.identity or paths.state_dir / "identity"
    before = certificate_in(folder)
    identity, waits = join(read_invite(invite), folder, COMMAND, frozenset({MemberRole.CLIENT}), paths.proxies)
    if certificate_in(folder) != before:
        History(paths.state_dir.absolute() / "history").forget_receipts()
    if not policy.exists():
        make_folder(policy.parent)
        write_durably(policy, new_policy(noise=not without_noise).encode())
    say(joined_text(identity, awaiting_approval=waits))
    if data is not None:
        privacy_commands.first_release(data, paths.state_dir, policy)
    say(f"What you allow is in {policy}. Next: {_next_command(config, state_dir, data)}")


def _next_command(config: Path | None, state_dir: Path | None, data: Path | None) -> str:
    """Returns the command that starts the daemon after `join`, with the options that this `join` was typed with."""
    words = ["pluralllm-client", "run"]
    for option, value in (("--config", config), ("--state-dir", state_dir), ("--data", data)):
        words += [] if value is None else [option, str(value)]
    return shlex.join(words) + ("" if config or data else " --data FILE")


def run(
    config: ConfigFile = None,
    coordinator: Annotated[str | None, typer.Option(help="The coordinator's address, host:port.")] = None,
    data: Annotated[Path | None, typer.Option(help="The private file: JSONL or Parquet.")] = None,
    state_dir: StateDir = None,
    device: Annotated[str | None, typer.Option(help="The device to train on: auto, cuda, cuda:N, mps or cpu.")] = None,
    exit_when_run_over: Annotated[bool | None, typer.Option(help="Stop the daemon when the first run ends.")] = None,
    plain_text: Annotated[
        bool | None, typer.Option("--plain-text", help="Use no certificates; the coordinator must be on this machine.")
    ] = None,
    log_format: LogFormatOption = None,
    notify_socket: NotifySocket = None,
    watchdog_usec: WatchdogUsec = None,
) -> None:
    """Take part in a federation until SIGTERM or Ctrl-C."""
    flags = {
        "coordinator": coordinator,
        "data": data,
        "state_dir": state_dir,
        "device": device,
        "exit_when_run_over": exit_when_run_over,
        "plain_text": plain_text,
        "log_format": log_format,
    }
    settings = load_config(ClientConfig, config, flags)
    form = log_form(settings.log_format, settings.log_file)
    configure_logs(form=form, level=settings.log_level, file=settings.log_file)
    with foreign_output_logged() if form == "json" else contextlib.nullcontext():
        asyncio.run(_run(settings, Supervisor(settings.state_dir, notify_socket, watchdog_usec)))


async def _run(config: ClientConfig, supervisor: Supervisor) -> None:
    from pluralllm.client.daemon.daemon import Daemon  # noqa: PLC0415 - gRPC takes a moment; help does not need it
    from pluralllm.client.link.transport import Transport  # noqa: PLC0415
    from pluralllm.client.work.worker_process import WorkerProcess  # noqa: PLC0415
    from pluralllm.common.process.tracing import tracing  # noqa: PLC0415

    need_torch()
    partner = load_partner(config)
    policy = load_policy(config.policy_file)
    folder = config.embedding_model_path
    if folder is not None and not is_model_folder(folder):
        raise ModelUnavailable(model=str(folder), problem="it is not a folder with a config.json")
    stop = asyncio.Event()
    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    structlog.contextvars.bind_contextvars(client=partner.name)
    with contextlib.ExitStack() as stack:
        stack.callback(ignore_stop_signals, asyncio.get_running_loop())
        stack.enter_context(DirectoryLock(config.state_dir.absolute()))
        data = PrivateFile(config.data, config.state_dir.absolute(), functools.partial(answers_in_use, config, policy))
        if config.policy_file is not None:
            report_missing_keys(policy, config.policy_file, config.state_dir)
        stack.enter_context(tracing(config.traces_endpoint, "pluralllm-client", partner.name))
        if config.metrics_listen is not None:
            address = stack.enter_context(scrape_port(config.metrics_listen, REGISTRY))
            write_durably(config.state_dir / "metrics-address", address.encode())
        stamina.instrumentation.set_on_retry_hooks([stamina.instrumentation.StructlogOnRetryHook, _count_retry])
        if partner.identity is None:
            transport = Transport.in_plain_text(partner.coordinator, partner.name, config.standby)
        else:
            transport = Transport.of_member(partner.identity, config.standby)
        daemon = Daemon(config, partner, policy, data, transport, WorkerProcess())
        daemon.tasks.keep("the signs of life", functools.partial(supervisor.reassure, daemon.pulse))
        supervisor.tell("READY=1", f"STATUS={partner.name}")
        try:
            await daemon.run(stop)
        finally:
            supervisor.tell("STOPPING=1")
            await transport.close()


def healthy(config: ConfigFile = None, state_dir: StateDir = None) -> None:
    """Check that the daemon of this state directory is alive; a container can use the command as its health check."""
    check_alive(load_config(JoinConfig, config, {"state_dir": state_dir}).state_dir)


def _count_retry(details: stamina.instrumentation.RetryDetails) -> None:  # noqa: ARG001 - the hook's signature
    RETRIES.inc()


def show_config(config: ConfigFile = None, origin: Origin = False, as_json: Json = False) -> None:
    """Show the configuration that results from flags, environment, file and defaults."""
    values = load_config(ClientConfig, config, {}).model_dump(mode="json")
    print_config(values, origins_of(ClientConfig, config) if origin else None, as_json=as_json)
