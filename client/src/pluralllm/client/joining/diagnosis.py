"""Finds out why the coordinator does not answer: gRPC reports a refused TLS handshake only as an unreachable server."""

import time
from dataclasses import dataclass

from pluralllm.client.joining.enrolment import ServerFacts, ask_server, check_membership
from pluralllm.common.errors.membership import (
    CertificateExpired,
    CertificateForeign,
    CertificateInvalid,
    CertificateNotYetValid,
    CertificateRevoked,
    CertificateWrongUse,
    ClockWrong,
    TooManyAttempts,
)
from pluralllm.common.errors.tree import NoAnswer, PluralError, ProxyFailed, Unreachable
from pluralllm.common.trust.certificates import BACKDATE_S
from pluralllm.common.trust.handshake import check_enrolment_port, handshake
from pluralllm.common.trust.identity import Identity

# Errors with which the coordinator rejects this very certificate. Any other error may pass: an administrator approves the member,
# or a full disk has space again.
# A certificate that is not on its list is none of these: a coordinator that was restored from an older backup, or that serves
# from another database, knows it again when its operator has mended that.
REJECTED = (
    CertificateForeign,
    CertificateInvalid,
    CertificateRevoked,
    CertificateWrongUse,
)
FINAL = (*REJECTED, CertificateExpired, CertificateNotYetValid)  # the dates only if this machine's clock is right


@dataclass(frozen=True, slots=True)
class Cause:
    """A cause that keeps a member from reaching its coordinator."""

    error: PluralError
    final: bool  # the coordinator itself has rejected the certificate, so no retry will help


def explained(failure: PluralError, cause: Cause | None) -> PluralError:
    """Returns the error that says why a call failed: the error of the cause, or `failure` itself.

    A cause that only says that another port does not answer explains nothing: the address of the call may be mistyped, its owner
    has perhaps never seen the other one, and a proxy may connect to one port only.
    """
    if cause is None:
        return failure
    match failure, cause.error:
        case Unreachable() | ProxyFailed(), Unreachable() | ProxyFailed() if failure.address != cause.error.address:
            return failure
    return cause.error


def diagnose(identity: Identity) -> Cause | None:
    """Finds the cause that keeps this member from reaching its coordinator. Returns None if no cause is found.

    First, the diagnosis asks the coordinator's enrolment port for the time and whether the certificate is revoked. Then the
    diagnosis tries a TLS handshake with the main port, also if the enrolment port does not answer. A diagnosis takes some seconds
    at most and changes nothing.
    """
    unanswered: PluralError | None = None  # why the enrolment port could not be asked
    try:
        verdict = _ask(identity)
    except (NoAnswer, TooManyAttempts) as error:
        verdict, unanswered = None, error
    except PluralError as error:
        verdict = Cause(error, final=False)
    if verdict is not None:
        return verdict
    try:
        main = identity.membership.coordinator
        shaken = handshake(main, identity.authority_pem, identity.proxies, identity.credentials)
    except PluralError as error:
        own = own_dates(identity) if isinstance(error, NoAnswer) else None
        return Cause(own or error, final=False)
    reason = unanswered if shaken.kept else own_dates(identity) or unanswered
    return None if reason is None else Cause(reason, final=False)


def own_dates(identity: Identity) -> PluralError | None:
    """Compares the dates of this member's certificate with this machine's clock.

    Returns CertificateExpired or CertificateNotYetValid, or None if the certificate is valid now.
    """
    facts, now_s = identity.facts, time.time()
    if now_s >= facts.not_after_s:
        return CertificateExpired(name=facts.name, expired=_day(facts.not_after_s))
    if now_s < facts.not_before_s:
        return CertificateNotYetValid(name=facts.name, valid_from=_day(facts.not_before_s))
    return None


def facts_of_server(identity: Identity) -> ServerFacts:
    """Asks the coordinator's enrolment port for the coordinator's time and protocol versions.

    If the port does not answer, raises the error of a TLS handshake with the port, or a subclass of NoAnswer if the handshake
    finds no error.
    """
    address = identity.membership.enrolment
    check_enrolment_port(
        address, identity.authority_pem, identity.proxies
    )  # raises the true cause, and sooner than gRPC
    return ask_server(address, identity.authority_pem, identity.proxies)


def _ask(identity: Identity) -> Cause | None:
    """Asks the coordinator whether it accepts this member's certificate, and returns the cause if it does not.

    Returns None if the coordinator accepts the certificate, limits the calls, or does not answer although TLS works.
    If the TLS handshake fails, raises the error of the handshake.
    """
    address = identity.membership.enrolment
    check_enrolment_port(
        address, identity.authority_pem, identity.proxies
    )  # raises the true cause, and sooner than gRPC
    try:
        check_membership(address, identity.authority_pem, identity.chain_pem, identity.proxies)
    except (Unreachable, ProxyFailed):
        return None
    except TooManyAttempts:  # other callers from this address may have caused it; it says nothing about this member
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
