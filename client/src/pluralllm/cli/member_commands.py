"""The commands about members and the audit log: `pluralllm invite | join | approve | revoke | members | audit | doctor`."""

import re
from pathlib import Path
from typing import Annotated

import typer

from pluralllm.cli.connection import (
    COMMAND,
    CoordinatorOption,
    identity_folder,
    is_plain_text,
    my_identity,
    remote,
)
from pluralllm.cli.output import now, show
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.process.console import Json, say
from pluralllm.common.process.environment import proxies_of
from pluralllm.common.process.files import write_durably
from pluralllm.common.process.json_forms import AUDIT_LOG, INVITE, MEMBER, MEMBERS, PAGE_LINK, PEER_KEY_RESET
from pluralllm.common.text.reading import read_json
from pluralllm.common.words.roles import GroupRole, MemberRole

members_app = typer.Typer()
UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
SECRET = 0o600
Name = Annotated[str, typer.Argument(help="The member's name: a-z, 0-9 and '-'.")]


def invite(
    name: Name,
    role: Annotated[MemberRole, typer.Option(help="Role of the new member.")],
    group: Annotated[str, typer.Option(help="The group that a client speaks for; default: the client's name.")] = "",
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Only evaluate the client's group, never train on it.")
    ] = False,
    ttl: Annotated[str, typer.Option(help="Time until the invite expires, such as 30m; at most 24h.")] = "24h",
    approve: Annotated[
        bool, typer.Option("--approve", help="After joining, the member needs `pluralllm approve` before it may call.")
    ] = False,
    run: Annotated[
        list[str] | None,
        typer.Option(help="A run that an observer may read; repeat it for several runs. '*' is every run."),
    ] = None,
    max_examples: Annotated[
        int,
        typer.Option(
            min=0,
            help="Largest number of questions that the client may state, and so the most that its weight can follow from; "
            "0: the coordinator's default, 10000.",
        ),
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="File to write; default: NAME.invite.")] = None,
    coordinator: CoordinatorOption = None,
    as_json: Json = False,
) -> None:
    """Invites a new member: writes an invite file, and prints the same invite as one line.

    Keep the file and the line secret until the invite is used. An invite works once.
    """
    path = out or Path(f"{name}.invite")
    ttl_s = parse_duration(ttl)
    _check_replaceable(path)
    group_role = GroupRole.HELD_OUT if held_out else None
    runs = tuple(run or ())
    invitation = remote(coordinator).invite(
        name, role, group, group_role, ttl_s, needs_approval=approve, runs=runs, max_examples=max_examples
    )
    write_durably(path, invitation.to_json().encode(), SECRET)
    value = {
        "name": invitation.name,
        "role": invitation.role,
        "file": str(path),
        "expires": invitation.expires.isoformat(),
        "line": invitation.to_line(),
    }
    command = "pluralllm-client" if role is MemberRole.CLIENT else "pluralllm"
    show(
        INVITE,
        value,
        as_json=as_json,
        screen=lambda _: (
            f"{path}: give it to {name}, who runs: {command} join {path.name}\n"
            f"Until {invitation.expires:%Y-%m-%d %H:%M UTC}, once. The same in one line:\n{invitation.to_line()}"
        ),
    )


def join(
    invite_text: Annotated[
        str, typer.Argument(metavar="INVITE", help="The invite file, its one line, or - for standard input.")
    ],
) -> None:
    """Makes you an observer or administrator: makes a key, uses the invite, and stores the certificate.

    The command may be repeated.
    """
    from pluralllm.client.joining import joining  # noqa: PLC0415 - gRPC takes a moment

    roles = frozenset({MemberRole.OBSERVER, MemberRole.ADMIN})
    invitation = joining.read_invite(invite_text)
    identity, awaiting_approval = joining.join(invitation, identity_folder(), COMMAND, roles, proxies_of(None))
    say(joining.joined_text(identity, awaiting_approval=awaiting_approval))


def approve(name: Name, coordinator: CoordinatorOption = None, as_json: Json = False) -> None:
    """Approves a member who joined with an invite that was made with --approve.

    Compare the fingerprints by phone first: `pluralllm members --keys` shows the fingerprints.
    """
    show(
        MEMBER, remote(coordinator).approve(name), as_json=as_json, screen=lambda member: f"{name} is {member['state']}"
    )


def revoke(
    name: Name,
    reason: Annotated[str, typer.Option(help="Reason to keep in the audit log.")] = "",
    coordinator: CoordinatorOption = None,
    as_json: Json = False,
) -> None:
    """Ends a membership at once.

    The member's certificates and open invites become void, and an update of the member that is not averaged yet does not count.
    """
    show(MEMBER, remote(coordinator).revoke(name, reason), as_json=as_json, screen=lambda _: f"{name} is revoked")


@members_app.callback(invoke_without_command=True)
def members(
    context: typer.Context,
    keys: Annotated[bool, typer.Option("--keys", help="Show whole fingerprints of keys, to compare by phone.")] = False,
    coordinator: CoordinatorOption = None,
    as_json: Json = False,
) -> None:
    """Lists the members: role, group, state, days until the certificate ends, key, and the time of the last call."""
    if context.invoked_subcommand is not None:
        return
    from pluralllm.cli.status_screen import keys_table, members_table  # noqa: PLC0415
    from pluralllm.common.trust.certificates import fingerprint_of_certificate  # noqa: PLC0415

    listed = remote(coordinator).members()
    authority = "" if is_plain_text() else fingerprint_of_certificate(my_identity().authority_pem)
    show(
        MEMBERS,
        {"members": listed},
        as_json=as_json,
        screen=lambda _: keys_table(listed, authority) if keys else members_table(listed, now()),
    )


@members_app.command("reset-peer-key")
def reset_peer_key(
    name: Name,
    coordinator: CoordinatorOption = None,
    as_json: Json = False,
) -> None:
    """Removes a client's peer key, so that its daemon may register another one, as after the loss of its identity folder.

    The key signs in private rounds, and the other partners have pinned it: ask the partner by phone first. Then every other
    partner pins the new key: `pluralllm-client peers pin`.
    """
    remote(coordinator).reset_peer_key(name)
    reset = {"name": name, "reset": True}
    show(
        PEER_KEY_RESET, reset, as_json=as_json, screen=lambda _: f"{name} registers its next peer key at its next Hello"
    )


def page(coordinator: CoordinatorOption = None, as_json: Json = False) -> None:
    """Prints a link to the coordinator's web page for you. It works once, within a minute, and opens a session of an hour.

    Keep the link secret until you have opened it. Only observers and administrators may read the page.
    """
    show(PAGE_LINK, {"link": remote(coordinator).page_link()}, as_json=as_json, screen=lambda value: str(value["link"]))


def audit(
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="Number of entries to show, the newest ones.")] = 50,
    coordinator: CoordinatorOption = None,
    as_json: Json = False,
) -> None:
    """Shows the audit log: the actions, and the members who took them.

    The command verifies the hash chain from the first entry, and compares the chain with the hash that this machine stored
    at the last reading.
    """
    from pluralllm.cli.audit_trail import verified_entries  # noqa: PLC0415
    from pluralllm.cli.status_screen import audit_table  # noqa: PLC0415

    entries, head, whole = verified_entries(remote(coordinator), None if is_plain_text() else identity_folder())
    value = {"entries": entries[-limit:], "verified": len(entries), "head_sha256": head, "whole": whole}
    show(
        AUDIT_LOG,
        value,
        as_json=as_json,
        screen=lambda _: audit_table(entries[-limit:], len(entries), head, now(), whole=whole),
    )


def doctor(coordinator: CoordinatorOption = None, as_json: Json = False) -> None:
    """Checks the connection to the coordinator: certificate, host name, TLS, clock, membership, protocol version.

    The exit code is 3 if something is wrong.
    """
    from pluralllm.client.joining.connection_checks import connection_checks  # noqa: PLC0415 - gRPC takes a moment
    from pluralllm.common.process.console import print_checks  # noqa: PLC0415

    if not print_checks(connection_checks(lambda: my_identity(coordinator)), as_json=as_json):
        raise typer.Exit(3)


def parse_duration(text: str) -> float:
    """Returns the seconds of a duration such as 30m, 24h or 1d. Raises InvalidArgument for a text of another form."""
    if (match := re.fullmatch(r"(\d{1,6})([smhd])", text)) is None:
        raise InvalidArgument(
            field="--ttl", problem=f"is {text!r}, must be a number with s, m, h or d, for example 24h"
        )
    return int(match[1]) * UNITS_S[match[2]]


def _check_replaceable(path: Path) -> None:
    """Checks that `invite` may write its file to this path.

    Raises InvalidArgument if the path's folder does not exist, or if the file exists already and is no invite.
    """
    if not path.exists():
        if not path.absolute().parent.is_dir():
            raise InvalidArgument(field="--out", problem=f"{path.absolute().parent} is no folder")
        return
    try:
        is_invite = path.is_file() and "pluralllm_invite" in dict(read_json(path))  # a device or a pipe is not read
    except (OSError, ValueError, TypeError):
        is_invite = False
    if not is_invite:
        raise InvalidArgument(field="--out", problem=f"{path} is there and is no invite")
