"""A doctor's checks of the connection to the coordinator: certificate, host name, TLS, clock, membership, protocol version."""

import time
from collections.abc import Callable, Iterator
from functools import partial

from pluralllm.client.joining.diagnosis import diagnose, facts_of_server
from pluralllm.client.joining.enrolment import check_main_port
from pluralllm.common.errors.tree import Unreachable
from pluralllm.common.process.console import Check, checked
from pluralllm.common.trust.certificates import BACKDATE_S, spoken
from pluralllm.common.trust.handshake import check_enrolment_port, handshake, resolve
from pluralllm.common.trust.identity import Identity
from pluralllm.common.wire.messages import PROTOCOL_MAX, PROTOCOL_MIN

DAY_S = 86_400.0


def connection_checks(load: Callable[[], Identity]) -> Iterator[Check]:
    """Runs the checks of the connection and yields the result of each: first of the certificate, then of all others.

    load: reads the identity. If `load` raises an error, the check of the certificate fails, and no other check runs.
    """
    identities: list[Identity] = []

    def certificate() -> Check:
        identities.append(load())
        return _certificate(identities[0])

    yield checked("certificate", certificate)
    for identity in identities:
        for name, probe in PROBES.items():
            yield checked(name, partial(probe, identity))


def _certificate(identity: Identity) -> Check:
    """Checks that the certificate has not expired, and that only its owner can read the key."""
    left_s = identity.facts.not_after_s - time.time()
    due = identity.is_renewal_due(time.time())
    member = identity.membership
    invite = f"pluralllm invite {member.name} --role {member.role}"
    fix = f"{invite} on the coordinator's side, then join again" if left_s <= 0 else ""
    note = ", renewal is due" if due and left_s > 0 else ""
    if identity.credentials.stat().st_mode & 0o077:
        fix = f"chmod 600 {identity.credentials}"
        return Check("certificate", ok=False, result="other users of this machine can read the key", fix=fix)
    member, key = identity.membership, spoken(identity.facts.key_sha256[:16])
    result = f"{member.name} of {member.federation}, {left_s / DAY_S:.0f} days left{note}; key {key} ..."
    return Check("certificate", left_s > 0, result, fix)


def _name(identity: Identity) -> Check:
    """Checks that the coordinator's host names resolve. A proxy resolves the names that are reached through it."""
    lines = []
    for address in _addresses(identity):
        proxy = identity.proxies.to(address)
        resolved = ", ".join(resolve(address)) if proxy is None else f"the proxy {proxy.address} resolves it"
        lines.append(f"{address}: {resolved}")
    return Check("name resolution", ok=True, result="; ".join(lines))


def _proxy(identity: Identity) -> Check:
    """Shows which proxy the connections use. The lines of the two ports say whether it connects."""
    ways = {address: identity.proxies.to(address) for address in _addresses(identity)}
    through = [f"{address} through {proxy.address}" for address, proxy in ways.items() if proxy is not None]
    result = f"{', '.join(through)} ({identity.proxies.origin})" if through else "none: connections are direct"
    return Check("proxy", ok=True, result=result)


def _addresses(identity: Identity) -> tuple[str, ...]:
    """Returns the addresses of the coordinator's two ports, sorted."""
    return tuple(sorted({identity.membership.coordinator, identity.membership.enrolment}))


def _main_port(identity: Identity) -> Check:
    """Checks that the coordinator's main port accepts this member's certificate, and that it is the main port."""
    address = identity.membership.coordinator
    shaken = handshake(address, identity.authority_pem, identity.proxies, identity.credentials)
    if shaken.kept:
        check_main_port(identity)
        return Check("main port, TLS", ok=True, result=f"{address} accepts this certificate, {shaken.version}")
    fix = "see the lines certificate, clock and standing"
    return Check("main port, TLS", ok=False, result=f"{address} refuses this certificate", fix=fix)


def _enrolment_port(identity: Identity) -> Check:
    """Checks that the enrolment port answers with a certificate that the federation's authority has signed."""
    address = identity.membership.enrolment
    shaken = check_enrolment_port(address, identity.authority_pem, identity.proxies)
    return Check("enrolment port, TLS", ok=True, result=f"{address} answers, {shaken.version}")


def _clock(identity: Identity) -> Check:
    """Checks that this machine's clock is close to the coordinator's clock."""
    skew_s = time.time() - facts_of_server(identity).time_s
    ok = abs(skew_s) < BACKDATE_S / 2
    return Check("clock", ok, f"{skew_s:+.1f} s off the coordinator's", "" if ok else "set the clock (NTP)")


def _membership(identity: Identity) -> Check:
    """Checks that the coordinator accepts this certificate. If it does not, raises the error that a diagnosis finds."""
    cause = diagnose(identity)
    if cause is not None and not isinstance(cause.error, Unreachable):
        raise cause.error
    if cause is not None:
        return Check("standing", ok=False, result="the coordinator could not be asked", fix="see the lines above")
    return Check("standing", ok=True, result="in date, not revoked")


def _protocol(identity: Identity) -> Check:
    """Checks that this client and the coordinator have a protocol version in common."""
    server = facts_of_server(identity)
    ok = max(server.protocol_min, PROTOCOL_MIN) <= min(server.protocol_max, PROTOCOL_MAX)
    result = f"{PROTOCOL_MIN}-{PROTOCOL_MAX} here, {server.protocol_min}-{server.protocol_max} there"
    return Check("protocol", ok, result, "" if ok else "upgrade the older side")


PROBES: dict[str, Callable[[Identity], Check]] = {
    "proxy": _proxy,
    "name resolution": _name,
    "main port, TLS": _main_port,
    "enrolment port, TLS": _enrolment_port,
    "clock": _clock,
    "standing": _membership,
    "protocol": _protocol,
}
