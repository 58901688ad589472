"""How a command reaches the coordinator: the identity in a folder, or plain text on loopback. Said once, before the command."""

import time
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pluralllm.common.errors.tree import PluralError
from pluralllm.common.trust.identity import Identity, load_identity

if TYPE_CHECKING:
    from pluralllm.operator.remote import Remote

COMMAND = "pluralllm"
DEFAULT_IDENTITY = Path(typer.get_app_dir("pluralllm"))
PLAIN_TEXT_ADDRESS = "127.0.0.1:7443"

CoordinatorOption = Annotated[
    str | None,
    typer.Option("--coordinator", envvar="PLURALLLM_COORDINATOR", help="host:port; default: as in the invite."),
]


@dataclass(frozen=True, slots=True)
class Way:
    """What stands before the command's name."""

    identity: Path = DEFAULT_IDENTITY
    plain_text: bool = False


USUAL_WAY = Way()
_way: ContextVar[Way] = ContextVar("way", default=USUAL_WAY)
_opened: "list[Remote]" = []  # kept to the end: a channel that is collected while an interrupt unwinds can wait for ever


def choose_way(
    identity: Annotated[
        Path,
        typer.Option(envvar="PLURALLLM_IDENTITY", help="Folder with your key and certificate.", show_default=False),
    ] = DEFAULT_IDENTITY,
    plain_text: Annotated[
        bool, typer.Option("--plain-text", envvar="PLURALLLM_PLAIN_TEXT", help="No certificates; this machine only.")
    ] = False,
) -> None:
    """Runs before every command."""
    _way.set(Way(identity, plain_text))


def identity_folder() -> Path:
    return _way.get().identity


def is_plain_text() -> bool:
    return _way.get().plain_text


def my_identity(coordinator: str | None = None) -> Identity:
    """Raises NotJoined, InvalidConfig."""
    return load_identity(_way.get().identity, COMMAND).at(coordinator)


def remote(coordinator: str | None) -> "Remote":
    """A connection by this person's identity, renewed on the way if that is due. Raises NotJoined, NotLoopback."""
    from pluralllm.operator.remote import Remote  # noqa: PLC0415 - gRPC takes a moment; help does not need it

    if is_plain_text():
        found = Remote.in_plain_text(coordinator or PLAIN_TEXT_ADDRESS)
        _opened.append(found)
        return found
    identity = my_identity(coordinator)
    found = Remote.of_member(identity)
    _opened.append(found)
    if not identity.facts.renew_s <= time.time() < identity.facts.not_after_s:
        return found
    try:
        renewed = found.renewed()
    except PluralError as error:
        typer.echo(f"note: the certificate could not be renewed: {error}", err=True)
        return found
    _opened.append(renewed)
    return renewed
