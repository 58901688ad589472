"""Keeps the coordinator's present addresses, which Hello and Renew tell, so that its members learn of a move."""

from pluralllm.client.joining.enrolment import check_main_port
from pluralllm.common.errors.tree import PluralError, Unreachable
from pluralllm.common.process.light_log import LightLog
from pluralllm.common.trust.handshake import check_enrolment_port, handshake
from pluralllm.common.trust.identity import Identity, save_addresses, stored_addresses
from pluralllm.common.words.addresses import Addresses

log = LightLog()


def keep_addresses(identity: Identity, present: Addresses, standby: str | None = None) -> Identity:
    """Stores the addresses that the coordinator has told. Returns the identity with the new enrolment address.

    An address is stored only after a TLS handshake has shown that the coordinator answers there: an operator may have entered
    an address that this member cannot reach. The address of a configured standby is no news. An address that the configuration
    has replaced in `identity` stays in use; the main address is used from the next start on. If the addresses cannot be stored,
    the log says why, and those in use stay: they work.
    """
    try:
        return _with_addresses(identity, present, standby)
    except (PluralError, OSError) as error:
        log.warning("addresses.not_kept", problem=str(error))
        return identity


def _with_addresses(identity: Identity, present: Addresses, standby: str | None) -> Identity:
    stored = stored_addresses(identity.folder)
    keeps_main = present.coordinator in (stored.coordinator, standby) or not _answers(
        present.coordinator, identity, main=True
    )
    keeps_enrolment = present.enrolment == stored.enrolment or not _answers(present.enrolment, identity, main=False)
    new = Addresses(
        stored.coordinator if keeps_main else present.coordinator,
        stored.enrolment if keeps_enrolment else present.enrolment,
    )
    if new == stored:
        return identity
    save_addresses(identity.folder, new)
    log.info("addresses.changed", coordinator=new.coordinator, enrolment=new.enrolment)
    is_configured = identity.membership.enrolment != stored.enrolment
    return identity if is_configured else identity.at(enrolment=new.enrolment)


def _answers(address: str, identity: Identity, *, main: bool) -> bool:
    """Returns whether the federation's coordinator answers at an address; if not, logs why.

    main: whether it is the main port, which must accept this member's certificate.
    """
    try:
        if not main:
            check_enrolment_port(address, identity.authority_pem, identity.proxies)
        elif not handshake(address, identity.authority_pem, identity.proxies, identity.credentials).kept:
            raise Unreachable(address=address, problem="it refuses this member's certificate")
        else:
            check_main_port(identity.at(address))  # the enrolment port shakes hands with everybody
    except PluralError as error:
        log.warning("addresses.not_taken", address=address, problem=str(error))
        return False
    return True
