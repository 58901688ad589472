"""The members of the federation with their invites and certificates, in memory and durably in the store.

A certificate proves a name. Everything else (role, group, approval, revocation) is looked up in the registry at each call.

A name has one line of certificates: the certificate of the newest membership, its newest renewal, the newest renewal of that
one, and so on. A new membership, or another renewal of the same certificate, voids what came before in the same transaction.
So nobody can use up a member's renewals with a stolen key, and a certificate of an earlier membership proves nothing.
"""

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import structlog
from cryptography.hazmat.primitives.asymmetric import ec

from pluralllm.common.errors.membership import (
    AwaitingApproval,
    CertificateExpired,
    CertificateInvalid,
    CertificateRevoked,
    CertificateUnknown,
    InviteExpired,
    InviteForAnother,
    InviteUnknown,
    InviteUsed,
    LastAdmin,
    MemberExists,
)
from pluralllm.common.errors.tree import InvalidArgument, NotFound, OverLimit
from pluralllm.common.trust.certificates import (
    fingerprint,
    key_of_certificate,
    public_key_of,
    read_certificate,
    read_known_certificate,
)
from pluralllm.common.trust.invite import TOKEN_BYTES, token_hash
from pluralllm.common.words.ids import ID_HELP, ClientId, is_id
from pluralllm.common.words.names import MemberName
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.members.access import Principal
from pluralllm.server.members.audit_log import AuditLog
from pluralllm.server.members.authority import Authority, check_dates, day
from pluralllm.server.members.invite_order import InviteOrder, check_order
from pluralllm.server.members.roster_log import RosterLog
from pluralllm.server.process.cancellation import unbroken
from pluralllm.server.storage.membership import (
    DEFAULT_MAX_EXAMPLES,
    Everyone,
    InviteRecord,
    IssuedCertificate,
    Member,
    MembershipChange,
    MembershipStore,
    MemberState,
)

log = structlog.get_logger()

MAX_LIVE_CERTIFICATES = 5  # in the line of one member: two during a renewal
REPLACED = ": a later renewal of the same certificate took its place. If that was not you, somebody has the key"


class Registry:
    """The members, invites and certificates, in the memory of one process.

    The methods run on the event loop of this process. Changes run one after another.
    """

    def __init__(
        self,
        store: MembershipStore,
        audit: AuditLog,
        authority: Authority,
        certificate_life_s: float,
        wall_s: Callable[[], float],
    ) -> None:
        self.authority = authority
        self.audit = audit
        self._store = store
        self._life_s = certificate_life_s
        self._wall_s = wall_s
        self._members: dict[ClientId, Member] = {}
        self._certificates: dict[str, IssuedCertificate] = {}  # by serial
        self._serials: defaultdict[ClientId, set[str]] = defaultdict(set)  # serials of each member's certificates
        self._invites: dict[str, InviteRecord] = {}  # by token hash
        self._changing = asyncio.Lock()
        self.roster = RosterLog(store, audit, authority.federation, self._valid_keys, self._changing)

    async def start(self) -> None:
        """Reads members, certificates, invites and the roster from the store."""
        self._remember(await self._store.everyone())
        await self.roster.start()

    # Reading

    def principal(self, certificate_pem: bytes) -> Principal:
        """Returns the member that may call with this certificate now. TLS has checked the certificate's signature.

        Raises CertificateUnknown, CertificateNotYetValid, CertificateExpired or CertificateRevoked if the certificate may not
        be used now. Raises AwaitingApproval if an administrator must approve the member first.
        """
        facts = read_known_certificate(certificate_pem)
        issued, member = self._certificates.get(facts.serial), self._members.get(facts.name)
        if issued is None or member is None or (issued.member, issued.key_sha256) != (facts.name, facts.key_sha256):
            raise CertificateUnknown(name=facts.name, serial=facts.serial)
        if issued.revoked_s is not None:
            raise self._void_error(issued)
        check_dates(facts, self._wall_s())
        if facts.role is not member.role or issued.issued_s < member.created_s:
            # Only states of earlier releases have such certificates: now a new membership voids the old ones.
            raise CertificateUnknown(name=facts.name, serial=facts.serial)
        if not member.approved:
            raise AwaitingApproval(name=member.name)
        return Principal(
            member.name, member.role, facts.serial, member.group, member.group_role, member.runs, member.max_examples
        )

    def holder(self, serial: str) -> Principal:
        """Returns the member that may call now with its certificate of this serial number. Raises errors as `principal` does."""
        return self.principal(self._certificates[serial].chain_pem)

    def knows_token(self, token: str) -> bool:
        """Returns whether an invite has this token, whether the invite is open or used. A stranger cannot guess a token."""
        invite = self._invites.get(token_hash(token))
        return invite is not None and not invite.withdrawn

    def known_serial(self, certificate_pem: bytes) -> str | None:
        """Returns the serial of a certificate that this coordinator has issued, even if it is void or has expired; else None."""
        try:
            facts = read_certificate(certificate_pem)
        except CertificateInvalid:
            return None
        issued = self._certificates.get(facts.serial)
        is_known = issued is not None and (issued.member, issued.key_sha256) == (facts.name, facts.key_sha256)
        return facts.serial if is_known else None

    def members(self) -> tuple[Member, ...]:
        """Returns all members, sorted by name."""
        return tuple(member for _, member in sorted(self._members.items()))

    def open_invites(self) -> tuple[InviteRecord, ...]:
        """Returns the invites that may still be used, sorted by name. Each name has at most one such invite."""
        now_s = self._wall_s()
        return tuple(sorted((i for i in self._invites.values() if i.is_open(now_s)), key=lambda invite: invite.name))

    def newest_certificate(self, name: ClientId) -> IssuedCertificate | None:
        """Returns the newest certificate of a member, one that is not void if there is any; None without a certificate."""
        return max(
            self._of(name),
            key=lambda issued: (issued.revoked_s is None, issued.issued_s, issued.not_after_s),
            default=None,
        )

    def state_of(self, member: Member) -> MemberState:
        """Returns the present state of a member: revoked, expired, active or awaiting approval."""
        newest = self.newest_certificate(member.name)
        if member.revoked_s is not None:
            return MemberState.REVOKED
        if newest is None or newest.not_after_s <= self._wall_s():
            return MemberState.EXPIRED
        return MemberState.ACTIVE if member.approved else MemberState.AWAITING_APPROVAL

    def revoked(self) -> tuple[ClientId, ...]:
        """Returns the names of all revoked members, sorted."""
        return tuple(member.name for member in self.members() if member.revoked_s is not None)

    # Changing

    @unbroken
    async def invite(self, by: Principal, order: InviteOrder) -> tuple[InviteRecord, str]:
        """Makes an invite, and withdraws open invites of the same name. Returns the invite and its secret token.

        by: the administrator. The token is kept nowhere. Raises InvalidArgument if the order is not allowed; MemberExists
        if the name belongs to a member that is neither revoked nor expired.
        """
        check_order(order)
        name, now_s = ClientId(order.name), self._wall_s()
        async with self._changing:
            self._check_name_is_free(name)
            token = secrets.token_urlsafe(TOKEN_BYTES)
            is_client = order.role is MemberRole.CLIENT
            invite = InviteRecord(
                token_sha256=token_hash(token),
                name=name,
                role=order.role,
                group=(order.group or order.name) if is_client else "",
                group_role=order.group_role or GroupRole.TRAIN,
                needs_approval=order.needs_approval,
                created_s=now_s,
                expires_s=now_s + order.ttl_s,
                runs=tuple(dict.fromkeys(order.runs)),
                max_examples=order.max_examples or DEFAULT_MAX_EXAMPLES,
            )
            entry = self.audit.new_entry(
                by,
                "CreateInvite",
                str(MemberName(name)),
                role=invite.role.value,
                group=invite.group,
                group_role=invite.group_role.value if is_client else "",
                needs_approval=invite.needs_approval,
                runs=" ".join(invite.runs),
                max_examples=invite.max_examples if is_client else 0,
            )
            await self._write(MembershipChange(entry, invites=(*self._withdrawn(name), invite)))
        return invite, token

    @unbroken
    async def join(self, name: str, token: str, request_der: bytes) -> tuple[Member, bytes]:
        """Makes the invited organisation a member. Returns the member and its certificate chain (PEM).

        token: the secret of the invite. request_der: the certificate request. A repeated call with the key of the first
        call returns the first call's chain.

        Raises InvalidArgument, CertificateInvalid, InviteUnknown, InviteForAnother, InviteExpired, InviteUsed or
        IssuerExpired. Raises CertificateRevoked or CertificateExpired if the call is repeated and the certificate is no longer
        valid.
        """
        if not is_id(name):
            raise InvalidArgument(field="name", problem=f"allowed: {ID_HELP}")
        key = public_key_of(request_der)
        key_sha256, now_s = fingerprint(key), self._wall_s()
        async with self._changing:
            invite = self._invites.get(token_hash(token))
            if invite is None or invite.withdrawn:
                raise InviteUnknown(name=name)
            if invite.name != name:
                raise InviteForAnother(name=name)
            if invite.used_by_key:
                return self._again(invite, key_sha256, now_s)
            if not invite.is_open(now_s):
                raise InviteExpired(name=name, expired=day(invite.expires_s))
            self._check_key_is_new(key_sha256, None)
            issued = self._issue(key, invite.name, invite.role, now_s)
            member = Member(
                name=invite.name,
                role=invite.role,
                group=invite.group,
                group_role=invite.group_role,
                approved=not invite.needs_approval,
                created_s=now_s,
                runs=invite.runs,
                max_examples=invite.max_examples,
            )
            used = replace(invite, used_by_key=key_sha256)
            by = Principal(invite.name, invite.role, issued.serial)
            void = self._voided(self._of(invite.name), now_s)
            entry = self.audit.new_entry(
                by,
                "Join",
                str(MemberName(invite.name)),
                key_sha256=key_sha256,
                role=member.role.value,
                voided=len(void),
            )
            gone = self.roster.removal_of(invite.name)  # the new membership may have another peer key
            change = MembershipChange(entry, (member,), (*void, issued), (used,), gone, spends=invite.token_sha256)
            await self._write(change)
        return member, issued.chain_pem

    @unbroken
    async def renew(self, by: Principal, request_der: bytes) -> bytes:
        """Issues the next certificate of a member and returns its chain (PEM).

        by: the member, with the serial of the certificate that is renewed. request_der: the certificate request. A repeated
        call with the key of the newest renewal returns that renewal's chain. Otherwise the new certificate takes the place of
        the newest renewal of the same certificate, which becomes void together with its own renewals.

        Raises CertificateInvalid if the request cannot be used; CertificateRevoked if the member's certificate is revoked.
        Raises IssuerExpired if the intermediate's certificate has expired; OverLimit if the member has too many valid
        certificates.
        """
        key = public_key_of(request_der)
        key_sha256, now_s = fingerprint(key), self._wall_s()
        async with self._changing:
            current = self._certificates[by.serial]
            if current.revoked_s is not None:  # since the door has checked it
                raise self._void_error(current)
            live = [issued for issued in self._of(by.name) if issued.not_after_s > now_s and issued.revoked_s is None]
            for issued in live:
                if issued.key_sha256 == key_sha256 and issued is not current:
                    return issued.chain_pem
            void = self._voided(self._renewals_of(current), now_s)
            if len(live) - len(void) >= MAX_LIVE_CERTIFICATES:
                raise OverLimit(what=f"certificates of {by.name}", got=len(live) + 1, limit=MAX_LIVE_CERTIFICATES)
            self._check_key_is_new(key_sha256, by.name)
            issued = replace(self._issue(key, by.name, by.role, now_s), predecessor=current.serial)
            entry = self.audit.new_entry(
                by,
                "Renew",
                str(MemberName(by.name)),
                key_sha256=key_sha256,
                new_serial=issued.serial,
                voided=len(void),
            )
            await self._write(MembershipChange(entry, certificates=(*void, issued)))
        if void:
            fix = f"ask {by.name} by phone whether it has renewed twice; if not: pluralllm revoke {by.name}"
            log.warning("certificate.renewed_again", name=by.name, voided=[old.serial for old in void], fix=fix)
        return issued.chain_pem

    @unbroken
    async def approve(self, by: Principal, name: str) -> Member:
        """Approves a member, so that the member may call. A repeated call changes nothing.

        Raises NotFound if there is no such member.
        """
        async with self._changing:
            member = self._member(name)
            if not member.approved:
                member = replace(member, approved=True)
                newest = self.newest_certificate(member.name)
                key_sha256 = newest.key_sha256 if newest is not None else ""
                entry = self.audit.new_entry(by, "ApproveMember", str(MemberName(member.name)), key_sha256=key_sha256)
                await self._write(MembershipChange(entry, members=(member,)))
        return member

    @unbroken
    async def revoke(self, by: Principal, name: str, reason: str) -> Member | None:
        """Revokes all certificates and withdraws all open invites of a name. A repeated call changes nothing.

        Returns the member; None if the name had an open invite only. Raises NotFound if the name has no member and no open
        invite; LastAdmin if no other active administrator would be left.
        """
        async with self._changing:
            member, withdrawn = self._members.get(ClientId(name)), self._withdrawn(ClientId(name))
            if member is None and not withdrawn:
                raise NotFound(what="member", name=name)
            if member is not None and (member.revoked_s is None or withdrawn):
                self._check_not_last_admin(member)
            elif member is not None:
                return member
            now_s = self._wall_s()
            void = self._voided(self._of(ClientId(name)), now_s)
            entry = self.audit.new_entry(
                by, "RevokeMember", str(MemberName(ClientId(name))), reason=reason, certificates=len(void)
            )
            gone = None if member is None else replace(member, revoked_s=now_s)
            no_key = self.roster.removal_of(ClientId(name))
            await self._write(MembershipChange(entry, () if gone is None else (gone,), void, withdrawn, no_key))
        return gone

    async def make_admin(self, name: ClientId, key: ec.EllipticCurvePublicKey) -> bytes:
        """Makes an administrator without an invite, on the coordinator's own machine. Returns the certificate chain (PEM).

        Raises MemberExists if the name belongs to a member that is neither revoked nor expired.
        """
        now_s = self._wall_s()
        async with self._changing:
            self._check_name_is_free(name)
            issued = self._issue(key, name, MemberRole.ADMIN, now_s)
            made = Member(name, MemberRole.ADMIN, "", GroupRole.TRAIN, approved=True, created_s=now_s)
            entry = self.audit.new_entry(
                None, "MakeAdmin", str(MemberName(name)), key_sha256=issued.key_sha256, serial=issued.serial
            )
            void = self._voided(self._of(name), now_s)
            no_key = self.roster.removal_of(name)
            await self._write(MembershipChange(entry, (made,), (*void, issued), roster=no_key))
        return issued.chain_pem

    # Parts

    async def _write(self, change: MembershipChange) -> None:
        await self.audit.change(change)
        self._remember(change)
        self.roster.note(change.roster)

    def _remember(self, change: MembershipChange | Everyone) -> None:
        self._members |= {member.name: member for member in change.members}
        self._certificates |= {issued.serial: issued for issued in change.certificates}
        for issued in change.certificates:
            self._serials[issued.member].add(issued.serial)
        self._invites |= {invite.token_sha256: invite for invite in change.invites}

    def _issue(
        self, key: ec.EllipticCurvePublicKey, name: ClientId, role: MemberRole, now_s: float
    ) -> IssuedCertificate:
        chain_pem = self.authority.issue_member(key, name, role, self._life_s, now_s)
        facts = read_certificate(chain_pem)
        return IssuedCertificate(facts.serial, name, facts.key_sha256, facts.not_after_s, now_s, chain_pem)

    def _again(self, invite: InviteRecord, key_sha256: str, now_s: float) -> tuple[Member, bytes]:
        """Returns the answer to a repeated call of `join`: the member and its certificate chain (PEM).

        A client repeats the call if the first answer was lost.

        Raises InviteUsed if the invite was used with another key; CertificateRevoked or CertificateExpired if the certificate is
        no longer valid.
        """
        if invite.used_by_key != key_sha256:
            raise InviteUsed(name=invite.name)
        with_key = [c for c in self._of(invite.name) if c.key_sha256 == key_sha256]
        good = [c for c in with_key if c.revoked_s is None and c.not_after_s > now_s]
        if not good:
            newest = max(with_key, key=lambda c: c.not_after_s)
            if newest.revoked_s is not None:
                raise self._void_error(newest)
            raise CertificateExpired(name=invite.name, expired=day(newest.not_after_s))
        return self._members[invite.name], good[0].chain_pem

    def _member(self, name: str) -> Member:
        if (member := self._members.get(ClientId(name))) is None:
            raise NotFound(what="member", name=name)
        return member

    def _of(self, name: ClientId) -> list[IssuedCertificate]:
        return [self._certificates[serial] for serial in self._serials.get(name, ())]

    def _valid_keys(self, name: ClientId) -> Iterator[ec.EllipticCurvePublicKey]:
        """Yields the keys of a member's certificates that are neither void nor expired: the newest two during a renewal."""
        for issued in self._of(name):
            if issued.revoked_s is None and issued.not_after_s > self._wall_s():
                yield key_of_certificate(issued.chain_pem)

    def _renewals_of(self, first: IssuedCertificate) -> list[IssuedCertificate]:
        """Returns the certificates that come from `first` by Renew: its own renewals, the renewals of those, and so on."""
        line, of_member = [first], self._of(first.member)
        for issued in line:  # the list grows while the loop reads it
            line += [renewal for renewal in of_member if renewal.predecessor == issued.serial]
        return line[1:]

    def _voided(self, certificates: Iterable[IssuedCertificate], now_s: float) -> tuple[IssuedCertificate, ...]:
        """Returns the certificates among these that are not void yet, as void from now on."""
        return tuple(replace(issued, revoked_s=now_s) for issued in certificates if issued.revoked_s is None)

    def _void_error(self, issued: IssuedCertificate) -> CertificateRevoked:
        """Returns the error for a void certificate. It says whether the membership ended or a renewal took the place."""
        revoked_s = issued.revoked_s or 0.0
        member = self._members.get(issued.member)
        if member is not None and member.revoked_s is None and issued.issued_s >= member.created_s:
            return CertificateRevoked(
                name=issued.member, revoked=day(revoked_s), what="The certificate", because=REPLACED
            )
        return CertificateRevoked(name=issued.member, revoked=day(revoked_s))

    def _withdrawn(self, name: ClientId) -> tuple[InviteRecord, ...]:
        now_s = self._wall_s()
        return tuple(replace(i, withdrawn=True) for i in self._invites.values() if i.name == name and i.is_open(now_s))

    def _check_name_is_free(self, name: ClientId) -> None:
        """Raises MemberExists if the name belongs to a member that is neither revoked nor expired."""
        if (member := self._members.get(name)) is None:
            return
        state = self.state_of(member)
        if state not in (MemberState.REVOKED, MemberState.EXPIRED):
            raise MemberExists(name=name, state=state.value.replace("_", " "))

    def _check_key_is_new(self, key_sha256: str, owner: ClientId | None) -> None:
        """Checks that no certificate of another member has this key. Raises CertificateInvalid if there is one.

        owner: the member that may have the key already; None if no member may have it.
        """
        if any(c.key_sha256 == key_sha256 and c.member != owner for c in self._certificates.values()):
            raise CertificateInvalid(what="the certificate request", problem="its key is in use; make a new one")

    def _check_not_last_admin(self, member: Member) -> None:
        others = [
            other
            for other in self._members.values()
            if other.role is MemberRole.ADMIN
            and other.name != member.name
            and self.state_of(other) is MemberState.ACTIVE
        ]
        if member.role is MemberRole.ADMIN and member.revoked_s is None and not others:
            raise LastAdmin(name=member.name)
