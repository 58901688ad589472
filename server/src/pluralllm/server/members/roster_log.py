"""The roster of the federation: the append-only, hash-chained log of the members' peer keys.

A client registers its peer key with its first Hello. The key then stays: another key of the same member is refused until an
administrator resets the key, or until the membership ends and a new one begins. The members see every entry, so that no entry
can be changed or kept from one of them without notice.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence

import structlog
from cryptography.hazmat.primitives.asymmetric import ec

from pluralllm.common.errors.private_rounds import PeerKeyDiffers, RosterDiverged
from pluralllm.common.errors.tree import InvalidArgument, NotFound
from pluralllm.common.private_rounds.peer_keys import PeerKeyClaim, fingerprint, is_endorsed, is_proven
from pluralllm.common.private_rounds.roster import Roster, RosterEntry
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.names import MemberName
from pluralllm.server.members.access import Principal
from pluralllm.server.members.audit_log import AuditLog
from pluralllm.server.process.cancellation import unbroken
from pluralllm.server.storage.membership import MembershipChange, MembershipStore, RosterRow

log = structlog.get_logger()

REGISTER, RESET = "RegisterPeerKey", "ResetPeerKey"  # actions in the audit log
PAGE = 1000

CertificateKeys = Callable[[ClientId], Iterable[ec.EllipticCurvePublicKey]]


def extended(roster: Roster, rows: Iterable[RosterRow]) -> Roster:
    """Returns a roster with further stored rows. Raises RosterDiverged if a row does not follow or does not fit its hashes."""
    for row in rows:
        roster = roster.extended((row.entry,))
        if (roster.head, row.entry.fingerprint) != (row.head, fingerprint(row.key_der)):
            raise RosterDiverged(problem=f"entry {row.entry.sequence} is not what its hash says")
    return roster


class RosterLog:
    """The roster in the memory of one process, and its growth in the store. The methods run on the event loop."""

    def __init__(
        self,
        store: MembershipStore,
        audit: AuditLog,
        federation: str = "",
        certificate_keys: CertificateKeys | None = None,
        changing: asyncio.Lock | None = None,
    ) -> None:
        """Makes an empty roster; `start` reads it.

        federation: the name that claims are for; "" in plain text. certificate_keys: returns the keys of a member's valid
        certificates, one of which must endorse the claim; None in plain text. changing: the lock of all changes of members.
        """
        self._store, self._audit = store, audit
        self._federation, self._certificate_keys = federation, certificate_keys
        self._changing = changing or asyncio.Lock()
        self._roster = Roster()
        self._rows: list[RosterRow] = []

    async def start(self) -> None:
        """Reads the roster from the store. Raises RosterDiverged if the stored rows are no chain."""
        while page := await self._store.roster_rows(len(self._rows), PAGE):
            extended(self._roster, page)
            self.note(page)

    @property
    def head(self) -> bytes:
        """The hash over all entries (SHA-256); empty before the first one."""
        return self._roster.head

    def entries(self, after: int, limit: int) -> Sequence[RosterEntry]:
        """Returns at most `limit` entries whose sequence number is above `after`, in order."""
        return [row.entry for row in self._rows[after : after + limit]]

    def peer_key(self, name: ClientId) -> bytes | None:
        """Returns a member's peer key that counts now (SubjectPublicKeyInfo, DER); None if there is none."""
        entry = self._roster.entry_of(name)
        return None if entry is None else self._rows[entry.sequence - 1].key_der

    def fingerprint_of(self, name: ClientId) -> str | None:
        """Returns the fingerprint of a member's peer key that counts now; None if there is none."""
        return self._roster.fingerprint_of(name)

    @unbroken
    async def register(self, by: Principal, group: str, claim: PeerKeyClaim) -> None:
        """Gives a member its peer key. A repeated call with the same key changes nothing.

        group: the member's group. Raises InvalidArgument for a key that is no P-256 key, that the caller has not proven to
        hold, that the member's certificate does not endorse, or that another member has had; PeerKeyDiffers if the member has
        another key. The audit log gets each refusal.
        """
        try:
            await self._register(by, group, claim)
        except (InvalidArgument, PeerKeyDiffers) as error:
            await self._audit.refused(by, REGISTER, str(MemberName(by.name)), error)
            raise

    async def _register(self, by: Principal, group: str, claim: PeerKeyClaim) -> None:
        claimed = (self._federation, by.name, claim.key_der)
        if not is_proven(claim.key_der, claim.proof, self._federation, by.name):
            raise InvalidArgument(field="peer_key.proof", problem="is not the key's signature over this member's claim")
        claimed_print = fingerprint(claim.key_der)
        async with self._changing:  # a revocation may have come before
            keys = None if self._certificate_keys is None else self._certificate_keys(by.name)
            if keys is not None and not any(is_endorsed(key, claim.endorsement, *claimed) for key in keys):
                problem = "is not the signature of the member's certificate over this claim"
                raise InvalidArgument(field="peer_key.endorsement", problem=problem)
            registered = self._roster.fingerprint_of(by.name)
            if registered == claimed_print:
                return
            if registered is not None:
                raise PeerKeyDiffers(name=by.name, known=registered, got=claimed_print)
            if self._roster.owner_of(claimed_print) not in (None, by.name):
                problem = "is the key of another member: each client needs an identity folder of its own"
                raise InvalidArgument(field="peer_key.key_der", problem=problem)
            entry = self._roster.next_entry(by.name, group, claimed_print)
            audited = self._audit.new_entry(
                by,
                REGISTER,
                str(MemberName(by.name)),
                fingerprint=claimed_print,
                change=entry.change.value,
                entry=entry.sequence,
            )
            row = RosterRow(entry, claim.key_der, entry.head_after(self._roster.head))
            await self._write(MembershipChange(audited, roster=(row,)))

    @unbroken
    async def reset(self, by: Principal, name: ClientId) -> None:
        """Removes a member's peer key, so that the member's next Hello may state another one. A repeated call changes nothing.

        by: the administrator. Raises NotFound if the member has never had a peer key.
        """
        async with self._changing:
            if name not in self._roster.last:
                raise NotFound(what="peer key", name=f"of {name}")
            for row in self.removal_of(name):
                fingerprint_gone, number = row.entry.fingerprint, row.entry.sequence
                audited = self._audit.new_entry(
                    by, RESET, str(MemberName(name)), fingerprint=fingerprint_gone, entry=number
                )
                await self._write(MembershipChange(audited, roster=(row,)))

    def removal_of(self, name: ClientId) -> tuple[RosterRow, ...]:
        """Returns the row that removes a member's key; () if there is no key. The caller writes the row, then calls `note`.

        Between the two calls, the caller holds the lock of all changes.
        """
        entry, key_der = self._roster.removal(name), self.peer_key(name)
        if entry is None or key_der is None:
            return ()
        return (RosterRow(entry, key_der, entry.head_after(self._roster.head)),)

    def note(self, rows: Sequence[RosterRow]) -> None:
        """Remembers rows that are in the store now."""
        if rows:
            self._roster = self._roster.extended(row.entry for row in rows)
            self._rows += rows

    async def _write(self, change: MembershipChange) -> None:
        await self._audit.change(change)
        self.note(change.roster)
        for row in change.roster:
            log.info("roster.grown", entry=row.entry.sequence, name=row.entry.name, change=row.entry.change.value)
