"""The commands `pluralllm-client join | run | healthy | config`. Each imports what it needs when it is typed."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from pluralllm.common.process.console import Json, print_config, say
from pluralllm.common.process.service_options import LogFormatOption, NotifySocket, WatchdogUsec

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
    from pluralllm.client.disclosure.policy import load_policy, new_policy  # noqa: PLC0415
    from pluralllm.client.joining.joining import certificate_in, join, joined_text, read_invite  # noqa: PLC0415 - gRPC takes a moment
    from pluralllm.client.joining.partner import COMMAND  # noqa: PLC0415
    from pluralllm.client.process.config import JoinConfig  # noqa: PLC0415
    from pluralllm.common.errors.tree import InvalidArgument  # noqa: PLC0415
    from pluralllm.common.process.configuration import load_config  # noqa: PLC0415
    from pluralllm.common.process.files import make_folder, write_durably  # noqa: PLC0415
    from pluralllm.common.words.roles import MemberRole  # noqa: PLC0415

    paths = load_config(JoinConfig, config, {"state_dir": state_dir})
    policy = paths.policy or paths.state_dir / "policy.toml"
    if without_noise and policy.exists() and load_policy(policy).privacy is not None:
        raise InvalidArgument(field="--without-noise", problem=f"{policy} asks for noise; remove its table [privacy]")
    if data is not None:
        from pluralllm.client.data.answers import shows_respondents  # noqa: PLC0415

        shows_respondents(data)  # a file with problems is refused before the invite is used
    folder = paths.identity_folder
    before = certificate_in(folder)
    identity, waits = join(read_invite(invite), folder, COMMAND, frozenset({MemberRole.CLIENT}), paths.proxies)
    if certificate_in(folder) != before:
        from pluralllm.client.keeping.history import History  # noqa: PLC0415 - brings the log

        History(paths.state_dir.absolute() / "history").forget_receipts()
    if not policy.exists():
        make_folder(policy.parent)
        write_durably(policy, new_policy(noise=not without_noise).encode())
    say(joined_text(identity, awaiting_approval=waits))
    if data is not None:
        from pluralllm.client.privacy_commands import first_release  # noqa: PLC0415 - noise needs numpy

        first_release(data, paths.state_dir, policy)
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
    from pluralllm.client.daemon_process import run_daemon  # noqa: PLC0415 - all rooms come with it; help needs none
    from pluralllm.client.process.config import ClientConfig  # noqa: PLC0415
    from pluralllm.common.process.configuration import load_config  # noqa: PLC0415
    from pluralllm.common.process.supervisor import Supervisor  # noqa: PLC0415

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
    run_daemon(settings, Supervisor(settings.state_dir, notify_socket, watchdog_usec))


def healthy(config: ConfigFile = None, state_dir: StateDir = None) -> None:
    """Check that the daemon of this state directory is alive; a container can use the command as its health check."""
    from pluralllm.client.process.config import JoinConfig  # noqa: PLC0415
    from pluralllm.common.process.configuration import load_config  # noqa: PLC0415
    from pluralllm.common.process.supervisor import check_alive  # noqa: PLC0415

    check_alive(load_config(JoinConfig, config, {"state_dir": state_dir}).state_dir)


def show_config(config: ConfigFile = None, origin: Origin = False, as_json: Json = False) -> None:
    """Show the configuration that results from flags, environment, file and defaults."""
    from pluralllm.client.process.config import ClientConfig  # noqa: PLC0415
    from pluralllm.common.process.configuration import load_config, origins_of  # noqa: PLC0415

    values = load_config(ClientConfig, config, {}).model_dump(mode="json")
    print_config(values, origins_of(ClientConfig, config) if origin else None, as_json=as_json)
