"""Commands `init`, `admin` and `renew-issuer`, for the person who may write to the coordinator's disk."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pluralllm.common.errors.membership import AlreadyJoined
from pluralllm.common.errors.tree import InvalidArgument, InvalidConfig
from pluralllm.common.process.configuration import load_config
from pluralllm.common.process.console import say
from pluralllm.common.process.environment import identity_of_person
from pluralllm.common.text.reading import Unreadable, read_text
from pluralllm.common.trust.certificates import PrivateKey, fingerprint_of_certificate, spoken
from pluralllm.common.trust.identity import next_key
from pluralllm.common.words.addresses import is_loopback
from pluralllm.common.words.ids import ID_HELP, is_id
from pluralllm.server.members import authority as ca
from pluralllm.server.process.config import ServerConfig

Hosts = Annotated[
    list[str] | None, typer.Option("--host", help="Name or address by which partners reach this machine. Repeatable.")
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="TOML file; flags and PLURALLLM_SERVER_* win over it.")
]
StateDir = Annotated[Path | None, typer.Option(help="Directory of the authority, runs, models and updates.")]
Listen = Annotated[str | None, typer.Option(help="host:port that serve will bind; the identity names its port.")]
EnrolmentListen = Annotated[str | None, typer.Option(help="host:port that serve will bind for members that join.")]
AdminName = Annotated[str, typer.Option("--admin", help="Name of the new administrator.")]
AdminFolder = Annotated[
    Path | None,
    typer.Option(
        "--admin-identity",
        envvar="PLURALLLM_IDENTITY",
        help="Folder for the administrator's key and identity; default: where `pluralllm` looks.",
    ),
]
Passphrase = Annotated[
    Path | None,
    typer.Option("--root-passphrase-file", help="File with the passphrase of the root's key; - asks for it."),
]


def init(
    host: Hosts = None,
    federation: Annotated[str | None, typer.Option(help="Name in certificates; default: the first host.")] = None,
    admin_name: AdminName = "admin",
    admin_identity: AdminFolder = None,
    root_passphrase_file: Passphrase = None,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    listen: Listen = None,
    enrolment_listen: EnrolmentListen = None,
) -> None:
    """Make the federation's certificate authority, this server's certificate and the first administrator."""
    from pluralllm.server.commands.administrators import make_admin  # noqa: PLC0415 - the database comes with it
    from pluralllm.server.storage.state_directory import StateDirectory  # noqa: PLC0415

    flags = {"state_dir": state_dir, "listen": listen, "enrolment_listen": enrolment_listen}
    settings = load_config(ServerConfig, config, flags)
    folder = identity_of_person("--admin-identity", admin_identity)
    name, hosts = ca.check_names(federation or (host or ["-"])[0].replace(":", "-"), host or [])
    ca.check_reachable(hosts)
    key = _admin_key(admin_name, folder)
    _warnings_for_people()
    passphrase = _passphrase(root_passphrase_file, confirm=True)
    with StateDirectory(settings.state_dir) as state:
        made = ca.create_authority(state.authority, name, hosts, passphrase, time.time())
        asyncio.run(make_admin(settings, state, made, admin_name, folder, key))
    say(
        f"federation {name} for {', '.join(hosts)}; state in {settings.state_dir}\n"
        f"authority's fingerprint: {spoken(fingerprint_of_certificate(made.root_pem))}\n"
        f"administrator {admin_name}: {folder}\n"
        f"The root's key is needed again in a year (renew-issuer): keep {state.authority / 'root-key.pem'} in a safe place.\n"
        "Next: pluralllm-server serve, then pluralllm invite NAME --role client"
    )
    warn_of_loopback(hosts)


def admin(
    name: Annotated[str, typer.Argument(help="Name of the new administrator: a-z, 0-9 and '-'.")],
    admin_identity: AdminFolder = None,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    listen: Listen = None,
    enrolment_listen: EnrolmentListen = None,
) -> None:
    """Make an administrator on this machine, if no administrator can send an invite. The server must be stopped."""
    from pluralllm.server.commands.administrators import make_admin  # noqa: PLC0415 - the database comes with it
    from pluralllm.server.storage.state_directory import StateDirectory  # noqa: PLC0415

    flags = {"state_dir": state_dir, "listen": listen, "enrolment_listen": enrolment_listen}
    settings = load_config(ServerConfig, config, flags)
    folder = identity_of_person("--admin-identity", admin_identity)
    key = _admin_key(name, folder)
    _warnings_for_people()
    with StateDirectory(settings.state_dir) as state:
        asyncio.run(make_admin(settings, state, ca.load_authority(state.authority), name, folder, key))
    say(f"administrator {name}: {folder}")


def renew_issuer(
    host: Hosts = None,
    root_key: Annotated[Path | None, typer.Option(help="File of the root's key, if it is kept elsewhere.")] = None,
    root_passphrase_file: Passphrase = None,
    config: ConfigFile = None,
    state_dir: StateDir = None,
) -> None:
    """Make a new intermediate and server certificate. --host replaces the host names. A running server loads the new files."""
    settings = load_config(ServerConfig, config, {"state_dir": state_dir})
    folder = settings.state_dir.absolute() / "authority"
    key = root_key or folder / "root-key.pem"
    ca.check_reachable(host or ())
    made = ca.renew_issuer(folder, host or (), key, _passphrase(root_passphrase_file, confirm=False), time.time())
    say(f"valid until {ca.day(made.issuer_expires_s)}; server certificate for {', '.join(made.hosts)}")
    warn_of_loopback(made.hosts)


def warn_of_loopback(hosts: Sequence[str]) -> None:
    """Prints a warning if nobody on another machine can reach the coordinator by its names."""
    if all(is_loopback(host) for host in hosts):
        say(f"warning: only this machine can connect to {', '.join(hosts)}. {ca.FOR_OTHER_MACHINES}", err=True)


def _admin_key(name: str, folder: Path) -> PrivateKey:
    """Makes and saves the new administrator's private key in `folder`, and returns the key.

    The command makes the key first: if the folder is not writable, the command fails before an authority exists. Raises
    InvalidArgument if the name is not allowed; AlreadyJoined if the folder holds an identity; InvalidConfig if the folder is
    not writable; StorageFull if the disk is full.
    """
    if not is_id(name):
        raise InvalidArgument(field="--admin", problem=f"is {name!r}, allowed: {ID_HELP}")
    if (folder / "identity.json").exists() or (folder / "credentials.pem").exists():
        raise AlreadyJoined(folder=str(folder), name="another member", federation="(see identity.json there)")
    return next_key(folder)


def _passphrase(file: Path | None, *, confirm: bool) -> bytes | None:
    """Reads the passphrase of the root's key from `file` and returns the passphrase.

    If `file` is "-", the operator types the passphrase. If `confirm` is true, the operator must type it twice. Returns None if
    `file` is None: the key then has no passphrase, and only the permissions of the key's file protect it.
    """
    if file is None:
        return None
    if str(file) == "-":
        text: str = typer.prompt("Passphrase of the root's key", hide_input=True, confirmation_prompt=confirm, err=True)
    else:
        try:
            text = read_text(file).rstrip("\r\n")
        except Unreadable as error:
            raise InvalidConfig(file=str(file), problems=f"  {error.problem}") from error
    if not text:
        raise InvalidArgument(field="--root-passphrase-file", problem="the passphrase is empty")
    return text.encode("utf-8", "surrogateescape")  # an ASCII terminal gives the typed bytes as surrogates


def _warnings_for_people() -> None:
    from pluralllm.common.process.logs import configure_logs  # noqa: PLC0415 - help and errors need no log

    configure_logs(form="console", level="WARNING")
