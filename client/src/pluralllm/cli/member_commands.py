"""`pluralllm invite | join | approve | revoke | members | audit | doctor`: who belongs to the federation, and who did what."""

import json
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
from pluralllm.common.process.console import Json
from pluralllm.common.process.files import write_durably
from pluralllm.common.process.json_forms import AUDIT_LOG, INVITE, MEMBER, MEMBERS
from pluralllm.common.trust.certificates import fingerprint_of_certificate
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole

UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
SECRET = 0o600
Name = Annotated[str, typer.Argument(help="The member's name: a-z, 0-9 and '-'.")]


def invite(
    name: Name,
    role: Annotated[MemberRole, typer.Option(help="What the new member may do.")],
    group: Annotated[str, typer.Option(help="Of a client: the group it speaks for; default: its name.")] = "",
    held_out: Annotated[bool, typer.Option("--held-out", help="Of a client: its group is evaluated only.")] = False,
    ttl: Annotated[str, typer.Option(help="How long it may be used: 30m, 24h. At most 24h.")] = "24h",
    approve: Annotated[
        bool, typer.Option("--approve", help="After joining, `pluralllm approve` is needed before it may call.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="The file to write; default: NAME.invite.")] = None,
    coordinator: CoordinatorOption = None,
    as_json: Json = False,
) -> None:
    """Invite a new member: a file, and the same in one line. Both are secret until they are used, once."""
    path = out or Path(f"{name}.invite")
    ttl_s = parse_duration(ttl)
    _check_replaceable(path)
    group_role = GroupRole.HELD_OUT if held_out else None
    made = remote(coordinator).invite(name, role, group, group_role, ttl_s, needs_approval=approve)
    write_durably(path, made.to_json().encode(), SECRET)
    value = {
        "name": made.name,
        "role": made.role,
        "file": str(path),
        "expires": made.expires.isoformat(),
        "line": made.to_line(),
    }
    command = "pluralllm-client" if role is MemberRole.CLIENT else "pluralllm"
    show(
        INVITE,
        value,
        as_json=as_json,
        screen=lambda _: (
            f"{path}: give it to {name}, who runs: {command} join {path.name}\n"
            f"Until {made.expires:%Y-%m-%d %H:%M UTC}, once. The same in one line:\n{made.to_line()}"
        ),
    )


def join(
    invite_given: Annotated[
        str, typer.Argument(metavar="INVITE", help="The invite file, its one line, or - for standard input.")
    ],
) -> None:
    """Become an observer or administrator: make a key, spend the invite, keep the certificate. Repeatable."""
    from pluralllm.client.joining import joining  # noqa: PLC0415 - gRPC takes a moment

    roles = frozenset({MemberRole.OBSERVER, MemberRole.ADMIN})
    identity, waits = joining.join(joining.read_invite(invite_given), identity_folder(), COMMAND, roles)
    typer.echo(joining.joined_text(identity, awaiting_approval=waits))


def approve(name: Name, coordinator: CoordinatorOption = None, as_json: Json = False) -> None:
    """Let a member call that joined by an invite with --approve: first compare the fingerprints by phone."""
    show(
        MEMBER, remote(coordinator).approve(name), as_json=as_json, screen=lambda member: f"{name} is {member['state']}"
    )


def revoke(
    name: Name,
    reason: Annotated[str, typer.Option(help="Kept in the audit log.")] = "",
    coordinator: CoordinatorOption = None,
    as_json: Json = False,
) -> None:
    """End a membership at once: its certificates and open invites are void, an update not averaged yet does not count."""
    show(MEMBER, remote(coordinator).revoke(name, reason), as_json=as_json, screen=lambda _: f"{name} is revoked")


def members(
    keys: Annotated[bool, typer.Option("--keys", help="Show whole fingerprints, to compare by phone.")] = False,
    coordinator: CoordinatorOption = None,
    as_json: Json = False,
) -> None:
    """Everyone: role, group, state, days left, key; and when they were last heard of."""
    from pluralllm.cli.status_screen import keys_table, members_table  # noqa: PLC0415

    found = remote(coordinator).members()
    authority = "" if is_plain_text() else fingerprint_of_certificate(my_identity().authority_pem)
    show(
        MEMBERS,
        {"members": found},
        as_json=as_json,
        screen=lambda _: keys_table(found, authority) if keys else members_table(found, now()),
    )


def audit(
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many to show, the newest.")] = 50,
    coordinator: CoordinatorOption = None,
    as_json: Json = False,
) -> None:
    """Who did what. Follows the hash chain from the first entry, and compares with what was seen here before."""
    from pluralllm.cli.audit_trail import verified_entries  # noqa: PLC0415
    from pluralllm.cli.status_screen import audit_table  # noqa: PLC0415

    found, head, whole = verified_entries(remote(coordinator), None if is_plain_text() else identity_folder())
    value = {"entries": found[-limit:], "verified": len(found), "head_sha256": head, "whole": whole}
    show(
        AUDIT_LOG,
        value,
        as_json=as_json,
        screen=lambda _: audit_table(found[-limit:], len(found), head, now(), whole=whole),
    )


def doctor(coordinator: CoordinatorOption = None, as_json: Json = False) -> None:
    """Check the way to the coordinator: certificate, name, TLS, clock, standing, protocol. Exit code 3 if something is wrong."""
    from pluralllm.client.joining.connection_checks import connection_checks  # noqa: PLC0415 - gRPC takes a moment
    from pluralllm.common.process.console import print_checks  # noqa: PLC0415

    if not print_checks(connection_checks(lambda: my_identity(coordinator)), as_json=as_json):
        raise typer.Exit(3)


def parse_duration(text: str) -> float:
    """30m, 24h, 1d as seconds. Raises InvalidArgument."""
    if (match := re.fullmatch(r"(\d{1,6})([smhd])", text)) is None:
        raise InvalidArgument(
            field="--ttl", problem=f"is {text!r}, must be a number with s, m, h or d, for example 24h"
        )
    return int(match[1]) * UNITS_S[match[2]]


def _check_replaceable(path: Path) -> None:
    """An older invite may be written over, nothing else."""
    if not path.exists():
        if not path.absolute().parent.is_dir():
            raise InvalidArgument(field="--out", problem=f"{path.absolute().parent} is no folder")
        return
    try:
        is_invite = "pluralllm_invite" in json.loads(path.read_text())
    except (OSError, ValueError):
        is_invite = False
    if not is_invite:
        raise InvalidArgument(field="--out", problem=f"{path} is there and is no invite")


COMMANDS = (invite, join, approve, revoke, members, audit, doctor)
