"""Renews this member's certificate before it expires, and finds out why the coordinator does not answer a call."""

import asyncio
import random
import time

import structlog

from pluralllm.client.joining.cached_diagnosis import CachedDiagnosis
from pluralllm.client.joining.diagnosis import explained
from pluralllm.client.joining.present_addresses import keep_addresses
from pluralllm.client.link.transport import Transport
from pluralllm.client.process.instruments import CERTIFICATE_LEFT_SECONDS
from pluralllm.common.errors.membership import (
    CertificateExpired,
    CertificateNotYetValid,
    CertificateRevoked,
    CertificateUnknown,
    TooManyCalls,
)
from pluralllm.common.errors.tree import NoAnswer, PluralError
from pluralllm.common.trust.certificates import make_request
from pluralllm.common.trust.identity import Identity, next_key, previous_identity, save_renewal, stored_identity
from pluralllm.common.words.addresses import Addresses

log = structlog.get_logger()

CHECK_EVERY_S = 3600.0  # clocks are set and machines sleep, so a longer wait could end too late
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0  # between two tries
RECOVERY_PAUSE_S = 5.0
RECOVER_EVERY_S = 60.0  # a coordinator that does not know this member is asked again and again
ADDRESSES_EVERY_S = 60.0
DIAGNOSE_EVERY_S = 30.0  # the coordinator counts calls on its enrolment port


class Renewal:
    """Keeps one member's certificate valid. Does nothing if the client uses plain text and therefore has no certificate."""

    def __init__(self, identity: Identity | None, transport: Transport, standby: str | None = None) -> None:
        """Stores the arguments. standby: the configured address of a second coordinator; None if there is none."""
        self._identity, self._standby = identity, standby
        self._transport = transport
        self._diagnosis = CachedDiagnosis(DIAGNOSE_EVERY_S)
        self._next_addresses_s = self._next_recovery_s = 0.0  # monotonic
        if identity is not None:
            CERTIFICATE_LEFT_SECONDS.labels("member").set_function(self._left_s)

    async def keep(self) -> None:
        """Renews the certificate at two thirds of its life, with a new key each time. Runs until it is cancelled."""
        while self._identity is not None:
            try:
                await self._keep_once(self._identity)
            except Exception as error:  # noqa: BLE001 - a disk that fails now may work in a minute
                days_left = max(0.0, self._left_s()) / 86_400
                problem = str(error) or type(error).__name__
                is_expected = isinstance(error, PluralError | OSError)
                facts = {} if is_expected else {"exc_info": error}
                log.warning("certificate.not_renewed", problem=problem, days_left=round(days_left, 1), **facts)
            life_s, renew_s = self._identity.facts.life_s, self._identity.facts.renew_s
            # The pause keeps this loop slow even if the coordinator refuses, a life has no length, or the clock is wrong.
            pause_s = max(SHORTEST_PAUSE_S, min(LONGEST_PAUSE_S, life_s / 20))
            wait_s = min(CHECK_EVERY_S, renew_s - time.time())
            await asyncio.sleep(max(pause_s * random.uniform(0.5, 1.5), wait_s))  # noqa: S311 - jitter, no secret

    async def _keep_once(self, identity: Identity) -> None:
        """Uses the stored certificate if another process has renewed it, and renews the certificate in use if that is due."""
        if (stored := await asyncio.to_thread(stored_identity, identity)) is not identity:
            self._use(stored)
            identity = stored
        if identity.is_renewal_due(time.time()):
            self._identity = await renew(identity, self._transport, self._standby)
            log.info("certificate.renewed", serial=self._identity.facts.serial)

    async def note_addresses(self, present: Addresses | None) -> None:
        """Keeps the addresses that the coordinator has told; None if it has told none.

        At most once in ADDRESSES_EVERY_S seconds: new addresses are tried, and a coordinator that told others with each Hello
        would let this machine try the doors of its own network.
        """
        now_s = time.monotonic()
        if self._identity is None or present is None or now_s < self._next_addresses_s:
            return
        self._next_addresses_s = now_s + ADDRESSES_EVERY_S
        self._identity = await asyncio.to_thread(keep_addresses, self._identity, present, self._standby)

    @property
    def identity(self) -> Identity | None:
        """This member with its present certificate; None in plain text."""
        return self._identity

    def _left_s(self) -> float:
        return 0.0 if self._identity is None else self._identity.facts.not_after_s - time.time()

    async def recover(self, refusal: CertificateRevoked | CertificateUnknown) -> None:
        """Goes on with another certificate of this member, after the coordinator has refused the present one.

        Another process of this member may have renewed it. If not, and it is void, somebody else has renewed the certificate
        before it: with a stolen key, or from an old copy of this folder. If the coordinator does not know it, the coordinator was
        restored from a backup that is older than the last renewal. The member then renews the certificate before once more, which
        voids what anybody else got. The log reports a void one as an error, because only an administrator can lock the other one
        out.
        Raises `refusal` if the coordinator accepts no certificate that this member has, or has just been asked about one that it
        does not know.
        """
        identity = self._identity
        if identity is None:
            raise refusal
        if (stored := await asyncio.to_thread(stored_identity, identity)) is not identity:
            self._use(stored)
            return
        previous = await asyncio.to_thread(previous_identity, identity, time.time())
        now_s, is_unknown = time.monotonic(), isinstance(refusal, CertificateUnknown)
        if previous is None or (is_unknown and now_s < self._next_recovery_s):
            raise refusal
        self._next_recovery_s = now_s + RECOVER_EVERY_S
        self._transport.use(previous)
        try:
            self._identity = await renew(previous, self._transport, self._standby)
        except (PluralError, OSError) as error:
            self._transport.use(identity)
            if not isinstance(error, NoAnswer | TooManyCalls):
                raise refusal from error
            self._next_recovery_s = now_s
            await asyncio.sleep(RECOVERY_PAUSE_S)  # the next refusal tries again
            return
        if is_unknown:
            log.warning("certificate.renewed_again", problem=str(refusal), serial=self._identity.facts.serial)
            return
        fix = "ask the coordinator's administrator to revoke this member and to invite it anew"
        log.error("certificate.replaced_by_others", problem=str(refusal), serial=self._identity.facts.serial, fix=fix)

    def _use(self, identity: Identity) -> None:
        """Uses a certificate that another process of this member has got."""
        self._identity = identity
        self._transport.use(identity)
        log.info("certificate.read_again", serial=identity.facts.serial)

    async def true_cause(self, error: PluralError) -> PluralError:
        """Returns the error that explains why a call failed with `error`, or `error` itself if no other explanation is found.

        The explanation is needed because a refused TLS handshake looks like a dead coordinator. A wrong clock looks like an
        expired certificate.
        If no retry can mend the error that was found, the method raises this error instead of returning it.
        """
        if self._identity is None or not isinstance(error, NoAnswer | CertificateExpired | CertificateNotYetValid):
            return error
        if isinstance(error, NoAnswer) and error.address != self._identity.membership.coordinator:
            return error  # a standby that does not serve refuses connections; that is no fault
        cause = await asyncio.to_thread(self._diagnosis.cause, self._identity)
        if cause is not None and cause.final:
            raise cause.error
        return explained(error, cause)


async def renew(identity: Identity, transport: Transport, standby: str | None = None) -> Identity:
    """Gets the member's next certificate, stores it on disk, and then uses it for new calls. Returns the new identity.

    standby: the configured address of a second coordinator; None if there is none.

    Calls that are under way end on the old channel, with the old certificate.
    Raises a subclass of NoAnswer, StorageFull, or an error that the proto file lists for EnrolmentService.Renew.
    """
    key = await asyncio.to_thread(next_key, identity.folder)
    answer = await transport.renew(make_request(key, identity.membership.name))
    renewed = await asyncio.to_thread(save_renewal, identity, key, answer.chain_pem)
    transport.use(renewed)
    if answer.addresses is None:
        return renewed
    return await asyncio.to_thread(keep_addresses, renewed, answer.addresses, standby)
