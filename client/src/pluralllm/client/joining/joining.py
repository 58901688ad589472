"""Turns an invite into an identity: makes a key, sends a certificate request, and stores the certificate that comes back.

The private key never leaves this machine.
"""

import datetime
import sys
from pathlib import Path

from pluralllm.client.joining.enrolment import Joined, check_membership
from pluralllm.client.joining.enrolment import join as spend
from pluralllm.common.errors.membership import (
    AwaitingApproval,
    CertificateExpired,
    CertificateForeign,
    CertificateRevoked,
    CertificateUnknown,
    InviteForOtherCommand,
    InviteInvalid,
)
from pluralllm.common.errors.tree import ProxyFailed, Unreachable
from pluralllm.common.process.proxies import DIRECT, Proxies
from pluralllm.common.text.reading import Unreadable, text_of
from pluralllm.common.trust.certificates import fingerprint_of_certificate, make_request, spoken
from pluralllm.common.trust.handshake import check_enrolment_port
from pluralllm.common.trust.identity import (
    Identity,
    Membership,
    check_free,
    der_to_pem,
    load_identity,
    next_key,
    save_identity,
)
from pluralllm.common.trust.invite import MAX_INVITE_BYTES, Invite, load_invite, parse_invite
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole

PAST = (CertificateExpired, CertificateRevoked, CertificateUnknown, CertificateForeign)


def join(
    invite: Invite, folder: Path, command: str, roles: frozenset[MemberRole], proxies: Proxies = DIRECT
) -> tuple[Identity, bool]:
    """Joins the federation of an invite, and stores the identity in `folder`. A repeated call changes nothing.

    command: name of the command that joins, for error texts. roles: the roles that this command may join with.
    proxies: say how the coordinator is reached.
    Returns the identity, and whether an administrator must still approve the member.
    Raises InviteForOtherCommand if the invite's role is not in `roles`; AlreadyJoined if the folder holds another identity;
    InvalidConfig if the folder cannot be written or a file of the identity is damaged. If the call to the coordinator fails,
    raises ForeignAuthority, WrongHost, ServerCertificateOutOfDate, a subclass of NoAnswer, or an error that the proto file
    lists for EnrolmentService.Join.
    """
    if invite.role not in roles:
        other = "pluralllm-client" if invite.role is MemberRole.CLIENT else "pluralllm"
        raise InviteForOtherCommand(name=invite.name, role=invite.role, command=other)
    authority_pem = der_to_pem(invite.authority_der)
    if check_free(folder, invite.federation, invite.name):
        identity = load_identity(folder, command)
        try:
            check_membership(invite.enrolment, authority_pem, identity.chain_pem, proxies)
        except AwaitingApproval:
            return identity, True
        except PAST:
            pass  # the old certificate is of no use; the member was invited again
        else:
            return identity, False
    key = next_key(folder)
    try:
        request_der = make_request(key, invite.name)
        answer = spend(invite.enrolment, authority_pem, invite.name, invite.token, request_der, proxies)
    except (Unreachable, ProxyFailed):
        check_enrolment_port(
            invite.enrolment, authority_pem, proxies
        )  # raises the true cause, unless really nothing answers
        raise
    _check_same(invite, answer)
    membership = Membership(
        federation=invite.federation,
        name=ClientId(invite.name),
        role=invite.role,
        group=answer.group,
        group_role=answer.group_role,
        coordinator=invite.coordinator,
        enrolment=invite.enrolment,
        record_key=invite.record_key,
    )
    return save_identity(folder, membership, authority_pem, key, answer.chain_pem), answer.awaiting_approval


def _check_same(invite: Invite, answer: Joined) -> None:
    """Checks that the coordinator gives the role, the group and the group's role that the invite promised.

    Raises InviteInvalid otherwise: the owner has agreed to the invite, and to nothing else.
    """
    pairs: list[tuple[str, str | None, str | None]] = [("role", invite.role, answer.role)]
    if invite.role is MemberRole.CLIENT:
        pairs += [
            ("group", invite.group or invite.name, answer.group),
            ("role of the group", invite.group_role or GroupRole.TRAIN, answer.group_role),
        ]
    for what, promised, received in pairs:
        if promised != received:
            raise InviteInvalid(problem=f"its {what} is {promised}, the coordinator says {received or 'none'}")


def certificate_in(folder: Path) -> bytes:
    """Returns the credentials in an identity's folder, to see whether joining replaced them; empty if there are none."""
    path = folder / "credentials.pem"
    return path.read_bytes() if path.is_file() else b""


def read_invite(source: str) -> Invite:
    """Reads an invite from a file's path, from the invite's one line, or from standard input if `source` is "-".

    Standard input keeps the invite out of the shell's history. Raises InviteInvalid for a damaged invite.
    """
    if source != "-":
        return load_invite(source)
    try:
        text = text_of(sys.stdin.buffer.read(MAX_INVITE_BYTES + 1), Path("standard input"), MAX_INVITE_BYTES)
    except Unreadable as error:
        raise InviteInvalid(problem=str(error)) from error
    except OSError as error:
        raise InviteInvalid(problem=f"standard input cannot be read: {error.strerror or error}") from error
    return parse_invite(text)


def joined_text(identity: Identity, *, awaiting_approval: bool) -> str:
    """Returns the text to print after joining: the member's name and role, and the fingerprints to compare on the phone."""
    member, facts = identity.membership, identity.facts
    place = ""
    if member.role is MemberRole.CLIENT:
        place = f", group {member.group} ({'evaluated only' if member.group_role == 'held_out' else 'trains'})"
    until = datetime.datetime.fromtimestamp(facts.not_after_s, tz=datetime.UTC).strftime("%Y-%m-%d")
    lines = [
        f"{member.name} is {member.role} of federation {member.federation}{place}",
        f"coordinator {member.coordinator}; certificate until {until}, renewed by itself; key and all in {identity.folder}",
        f"fingerprint of your key: {spoken(facts.key_sha256)}",
        f"fingerprint of the authority: {spoken(fingerprint_of_certificate(identity.authority_pem))}",
        "Compare both with the coordinator's administrator on the phone: `pluralllm members --keys` shows them there.",
    ]
    if awaiting_approval:
        lines.append(f"Until the administrator runs `pluralllm approve {member.name}` every call is refused.")
    return "\n".join(lines)
