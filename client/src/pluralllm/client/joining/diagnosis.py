"""Why the coordinator does not answer. gRPC shows a refused handshake as a dead server; the true cause is found out here."""

import time
from dataclasses import dataclass

from pluralllm.client.joining.enrolment import ServerFacts, ask_server, check_membership
from pluralllm.common.errors.membership import (
    CertificateExpired,
    CertificateForeign,
    CertificateInvalid,
    CertificateNotYetValid,
    CertificateRevoked,
    CertificateUnknown,
    CertificateWrongUse,
    ClockWrong,
    ServerCertificateOutOfDate,
    TooManyAttempts,
)
from pluralllm.common.errors.tree import PluralError, Unreachable
from pluralllm.common.trust.certificates import BACKDATE_S
from pluralllm.common.trust.handshake import handshake
from pluralllm.common.trust.identity import Identity

# What the coordinator says against this very certificate. All else passes: an approval comes, a disk is emptied.
FINAL = (
    CertificateExpired,
    CertificateForeign,
    CertificateInvalid,
    CertificateNotYetValid,
    CertificateRevoked,
    CertificateUnknown,
    CertificateWrongUse,
)


@dataclass(frozen=True, slots=True)
class Cause:
    error: PluralError
    final: bool  # no retry will help: the coordinator itself has said so


def diagnose(identity: Identity) -> Cause | None:
    """What keeps this member from its coordinator; None if nothing is found. Takes at most some seconds; changes nothing.

    The coordinator's enrolment port is asked first: it knows whether the certificate is revoked, and what the time is.
    """
    try:
        verdict = _ask(identity)
        if verdict is not None:
            return verdict
        shaken = handshake(identity.membership.coordinator, identity.authority_pem, identity.credentials)
    except ServerCertificateOutOfDate as error:
        return Cause(error, final=False)
    except PluralError as error:
        own = own_dates(identity) if isinstance(error, Unreachable | TooManyAttempts) else None
        return Cause(own or error, final=False)
    if shaken.kept:
        return None
    refused = own_dates(identity)
    return Cause(refused, final=False) if refused is not None else None


def own_dates(identity: Identity) -> PluralError | None:
    """What this machine's own clock says of its certificate."""
    facts, now_s = identity.facts, time.time()
    if now_s >= facts.not_after_s:
        return CertificateExpired(name=facts.name, expired=_day(facts.not_after_s))
    if now_s < facts.not_before_s:
        return CertificateNotYetValid(name=facts.name, valid_from=_day(facts.not_before_s))
    return None


def facts_of_server(identity: Identity) -> ServerFacts:
    """What the coordinator says of itself. Raises the true cause if it cannot be asked."""
    address = identity.membership.enrolment
    try:
        return ask_server(address, identity.authority_pem)
    except Unreachable:
        handshake(address, identity.authority_pem)  # raises the true cause, if there is one
        raise


def _ask(identity: Identity) -> Cause | None:
    """The coordinator's own verdict; None if it has nothing against us, or cannot be asked."""
    address = identity.membership.enrolment
    try:
        check_membership(address, identity.authority_pem, identity.chain_pem)
    except Unreachable:
        handshake(address, identity.authority_pem)
    except TooManyAttempts:  # others behind our address have asked: it says nothing about us
        return None
    except PluralError as error:
        if isinstance(error, CertificateExpired | CertificateNotYetValid):
            wrong_s = time.time() - facts_of_server(identity).time_s
            if abs(wrong_s) > BACKDATE_S:
                return Cause(ClockWrong(skew_s=wrong_s), final=False)
        return Cause(error, final=isinstance(error, FINAL))
    return None


def _day(time_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(time_s))
