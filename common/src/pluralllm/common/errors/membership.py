"""Errors about members, certificates and invites; tree.py draws the whole tree.

Refused
|- CertificateInvalid      a key, request or certificate cannot be read, or is of the wrong kind
|- CertificateExpired      the certificate's validity has ended
|- CertificateNotYetValid  the certificate's validity has not begun: the member's or the coordinator's clock is wrong
|- CertificateRevoked      an administrator has revoked the member, or another certificate of the member took its place
|- CertificateUnknown      the right authority signed the certificate, but this coordinator has no record of the certificate
|- CertificateForeign      another authority signed the certificate
|- CertificateWrongUse     the certificate is not for TLS clients
|- RoleForbids             the member's role does not allow this call
|- IdentityMismatch        a message and the caller's certificate name different members
|- AwaitingApproval        the member has joined, but no administrator has approved the member yet
|- InviteInvalid           the text of an invite cannot be read
|- InviteForOtherCommand   a member of the invited role joins with another command
|- InviteUnknown           no invite has this token, or the invite was withdrawn
|- InviteForAnother        the token belongs to the invite of another member
|- InviteExpired           the invite's validity has ended
|- InviteUsed              another key has used the token already
|- RunNotShared            the member has no right to read this run
|- TooManyCalls            the member makes one kind of call too often
|- TooManyAttempts         the enrolment port limits the rate of calls
|- MemberExists            a member with this name exists already
|- LastAdmin               the member is the only administrator, so it cannot be revoked
|- NotInitialised          the state directory has no certificate authority
|- AlreadyInitialised      the state directory has a certificate authority already
|- NotJoined               the folder holds no certificate
|- AlreadyJoined           the folder holds the certificate of another member
|- ForeignAuthority        the authority in the invite did not sign the coordinator's certificate
|- WrongHost               the coordinator's certificate is not valid for the host name that was used
|- ServerCertificateOutOfDate  the coordinator's certificate is not valid now, or this machine's clock is wrong
|- ClockWrong              this machine's clock differs too much from the coordinator's
|- IssuerExpired           the validity of the coordinator's intermediate certificate has ended
`- AuditBroken             the audit log's hash chain is broken, or the log differs from what an earlier reading showed
"""

from dataclasses import dataclass

from pluralllm.common.errors.root import Refused


@dataclass(eq=False)
class CertificateInvalid(Refused):
    what: str
    problem: str
    why = "{what} cannot be used: {problem}."


@dataclass(eq=False)
class CertificateExpired(Refused):
    name: str
    expired: str
    why = "The certificate of {name} expired on {expired}."
    fix = "Check this machine's clock; if it is right, ask for a new invite: pluralllm invite {name} --role ROLE."


@dataclass(eq=False)
class CertificateNotYetValid(Refused):
    name: str
    valid_from: str
    why = "The certificate of {name} is valid from {valid_from} on."
    fix = "Check the clocks of both machines."


@dataclass(eq=False)
class CertificateRevoked(Refused):
    name: str
    revoked: str
    what: str = "The membership"  # or "The certificate", if another certificate of the same member took its place
    because: str = ""
    why = "{what} of {name} was revoked on {revoked}{because}."
    fix = "Ask the coordinator's administrator; a new invite makes it a member again."


@dataclass(eq=False)
class CertificateUnknown(Refused):
    name: str
    serial: str
    why = "The certificate of {name} (serial {serial}) is not on this coordinator's list."
    fix = "Ask the coordinator's administrator for a new invite: pluralllm invite {name} --role ROLE."


@dataclass(eq=False)
class CertificateForeign(Refused):
    name: str
    why = "The certificate of {name} is not signed by this federation's authority."
    fix = "Join this federation with an invite of its own; another federation's certificate is of no use here."


@dataclass(eq=False)
class CertificateWrongUse(Refused):
    name: str
    why = "The certificate of {name} is not made for TLS clients."
    fix = "Use the certificate that joining gave."


@dataclass(eq=False)
class RoleForbids(Refused):
    name: str
    role: str
    rpc: str
    allowed: str
    why = "{name} is {role}; {rpc} is for {allowed}."
    fix = "Ask the coordinator's administrator for an invite with another role."


@dataclass(eq=False)
class IdentityMismatch(Refused):
    claimed: str
    certificate: str
    why = "The call speaks for {claimed}, the certificate is for {certificate}."


@dataclass(eq=False)
class AwaitingApproval(Refused):
    name: str
    why = "{name} has joined and waits for approval."
    fix = "An administrator compares the key's fingerprint by phone and runs: pluralllm approve {name}."


@dataclass(eq=False)
class InviteInvalid(Refused):
    problem: str
    why = "The invite cannot be read: {problem}."
    fix = "Take the invite file as it was made, or its whole one line."


@dataclass(eq=False)
class InviteForOtherCommand(Refused):
    name: str
    role: str
    command: str
    why = "This invite makes {name} {role}; another command joins with it."
    fix = "Run: {command} join INVITE."


@dataclass(eq=False)
class InviteUnknown(Refused):
    name: str
    why = "There is no open invite for {name} with this token."
    fix = "Ask the coordinator's administrator for a new one: pluralllm invite {name} --role ROLE."


@dataclass(eq=False)
class InviteForAnother(Refused):
    name: str
    why = "This invite is not for {name}."
    fix = "Use the invite as it was made; for another name ask for another one."


@dataclass(eq=False)
class InviteExpired(Refused):
    name: str
    expired: str
    why = "The invite for {name} expired on {expired}."
    fix = "Ask the coordinator's administrator for a new one: pluralllm invite {name} --role ROLE."


@dataclass(eq=False)
class InviteUsed(Refused):
    name: str
    why = "The invite for {name} has been used with another key."
    fix = "If that was not you, the token was stolen: have the administrator run pluralllm revoke {name} at once."


@dataclass(eq=False)
class RunNotShared(Refused):
    name: str
    run: str
    why = "{name} may not read run {run}: the run does not name its group, or its invite does not name the run."
    fix = "Ask the coordinator's administrator."


@dataclass(eq=False)
class TooManyCalls(Refused):
    name: str
    rpc: str
    retry_s: float
    why = "{name} calls {rpc} too often."
    fix = "Try again in {retry_s:.1f} s."


@dataclass(eq=False)
class TooManyAttempts(Refused):
    retry_s: float
    why = "Too many calls on the enrolment port."
    fix = "Try again in {retry_s:.0f} s."


@dataclass(eq=False)
class MemberExists(Refused):
    name: str
    state: str
    why = "There is a member {name} already ({state})."
    fix = "Choose another name, or run pluralllm revoke {name} first."


@dataclass(eq=False)
class LastAdmin(Refused):
    name: str
    why = "{name} is the last administrator."
    fix = "Invite another one first: pluralllm invite NAME --role admin."


@dataclass(eq=False)
class NotInitialised(Refused):
    state_dir: str
    why = "{state_dir} has no certificate authority."
    fix = "Run pluralllm-server init --host NAME first, or, for a trial on this machine alone, serve --plain-text."


@dataclass(eq=False)
class AlreadyInitialised(Refused):
    state_dir: str
    why = "{state_dir} has a certificate authority already; a second one would lock every member out."
    fix = "Use another --state-dir; for a lost administrator's key run pluralllm-server admin."


@dataclass(eq=False)
class NotJoined(Refused):
    folder: str
    command: str
    why = "There is no certificate in {folder}."
    fix = "Join with the invite you were given: {command} join INVITE."


@dataclass(eq=False)
class AlreadyJoined(Refused):
    folder: str
    name: str
    federation: str
    why = "{folder} holds the certificate of {name} in federation {federation}."
    fix = "Give another folder, or move that one away."


@dataclass(eq=False)
class ForeignAuthority(Refused):
    address: str
    problem: str
    why = "What answers at {address} is not the coordinator this member was invited by: {problem}."
    fix = "Do not go on; ask the coordinator's operator whether the authority was replaced, and for a new invite if so."


@dataclass(eq=False)
class WrongHost(Refused):
    address: str
    names: str
    why = "The coordinator's certificate is not for {address} but for {names}."
    fix = "Use one of these names, or have the operator run pluralllm-server renew-issuer --host NAME."


@dataclass(eq=False)
class ServerCertificateOutOfDate(Refused):
    address: str
    valid_from: str
    valid_to: str
    clock: str
    why = "The certificate of {address} is valid from {valid_from} to {valid_to}; this machine's clock says {clock}."
    fix = "Set this machine's clock; if it is right, the coordinator's operator runs pluralllm-server doctor."


@dataclass(eq=False)
class ClockWrong(Refused):
    skew_s: float
    why = "This machine's clock is {skew_s:+.0f} s off the coordinator's, so certificates look out of date."
    fix = "Set the clock (NTP) and try again."


@dataclass(eq=False)
class IssuerExpired(Refused):
    expired: str
    why = "The coordinator's intermediate certificate expired on {expired}: nobody can join or renew."
    fix = "The operator runs pluralllm-server renew-issuer."


@dataclass(eq=False)
class AuditBroken(Refused):
    problem: str
    why = "The audit log is not to be trusted: {problem}."
    fix = "Keep what you have, and ask the coordinator's operator."
