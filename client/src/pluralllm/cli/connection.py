"""Opens a command's connection to the coordinator: with the identity in a folder, or in plain text on loopback.

The options --identity and --plain-text stand before the command's name, and hold for every command.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pluralllm.common.process.console import say
from pluralllm.common.process.environment import identity_of_person
from pluralllm.common.process.imports import without_collecting
from pluralllm.common.process.later_commands import VersionOption

if TYPE_CHECKING:
    from pluralllm.common.trust.identity import Identity
    from pluralllm.operator.remote import Remote

COMMAND = "pluralllm"

CoordinatorOption = Annotated[
    str | None,
    typer.Option(
        "--coordinator",
        envvar="PLURALLLM_COORDINATOR",
        help="Address of the coordinator, host:port; default: the one in the invite.",
    ),
]


@dataclass(frozen=True, slots=True)
class Access:
    """The values of the options that stand before the command's name: --identity, --plain-text and --enrolment."""

    identity: Path | None = None  # None stands for the usual folder
    plain_text: bool = False
    enrolment: str | None = None


USUAL_ACCESS = Access()
_access: ContextVar[Access] = ContextVar("access", default=USUAL_ACCESS)
_opened: "list[Remote]" = []  # kept until the process ends: a channel collected during an interrupt can wait for ever


def choose_access(
    identity: Annotated[
        Path | None,
        typer.Option(envvar="PLURALLLM_IDENTITY", help="Folder with your key and your certificate."),
    ] = None,
    plain_text: Annotated[
        bool,
        typer.Option(
            "--plain-text", envvar="PLURALLLM_PLAIN_TEXT", help="Use no certificates; works on this machine only."
        ),
    ] = False,
    enrolment: Annotated[
        str | None,
        typer.Option(
            envvar="PLURALLLM_ENROLMENT",
            help="Address of the coordinator's enrolment port, host:port; default: the one in the invite.",
        ),
    ] = None,
    version: VersionOption = False,  # noqa: ARG001 - it ends the command by itself
) -> None:
    """Keeps the options that stand before the command's name; Typer calls this function before every command."""
    _access.set(Access(identity, plain_text, enrolment))


def identity_folder() -> Path:
    """Returns the folder with this person's key and certificate. Raises InvalidConfig if no home folder is known."""
    return identity_of_person("--identity", _access.get().identity)


def is_plain_text() -> bool:
    """Returns whether the command was typed with --plain-text."""
    return _access.get().plain_text


def my_identity(coordinator: str | None = None) -> "Identity":
    """Returns this person's identity: key, certificate and the coordinator's address.

    coordinator: an address that replaces the coordinator's address in the identity; None keeps the identity's address.
    Raises NotJoined if the folder holds no identity; InvalidConfig if a file of the identity is damaged; InvalidArgument if
    --enrolment is no address.
    """
    from pluralllm.common.errors.tree import InvalidArgument  # noqa: PLC0415 - not for help
    from pluralllm.common.trust.identity import load_identity  # noqa: PLC0415 - certificates take a moment
    from pluralllm.common.words.addresses import check_address  # noqa: PLC0415

    access = _access.get()
    try:
        enrolment = None if access.enrolment is None else check_address(access.enrolment)
    except ValueError as error:
        raise InvalidArgument(field="--enrolment", problem=str(error)) from error
    return load_identity(identity_folder(), COMMAND).at(coordinator, enrolment)


def remote(coordinator: str | None) -> "Remote":
    """Returns an open connection to the coordinator, made with this person's identity.

    A certificate that is due for renewal is renewed first.
    coordinator: the address to connect to. None means the address in the identity or, in plain text, the default address.
    Raises NotJoined if the folder holds no identity; NotLoopback if plain text is used and the address is on another machine.
    """
    with without_collecting():
        from pluralllm.operator.opening import opened  # noqa: PLC0415 - gRPC takes a moment; help does not need it
        from pluralllm.operator.remote import Remote  # noqa: PLC0415

    if is_plain_text():
        from pluralllm.common.words.addresses import PLAIN_TEXT_ADDRESS  # noqa: PLC0415

        connection = Remote.in_plain_text(coordinator or PLAIN_TEXT_ADDRESS)
        _opened.append(connection)
        return connection
    return opened(
        my_identity(coordinator),
        _opened.append,
        lambda error: say(f"note: the certificate could not be renewed: {error}", err=True),
    )
