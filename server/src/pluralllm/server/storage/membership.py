"""Records of members, certificates and invites, and the protocol of the store that keeps the records."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from pluralllm.common.private_rounds.roster import RosterEntry
from pluralllm.common.trust.audit_chain import AuditEntry
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole

DEFAULT_MAX_EXAMPLES = 10_000  # of a client whose invite does not say otherwise


class MemberState(StrEnum):
    INVITED = "invited"
    AWAITING_APPROVAL = "awaiting_approval"
    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"
    UNPROVEN = "unproven"  # connected in plain text only, where no certificate proves the name


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the federation: an organisation.

    This record decides the member's rights. The member's certificate only proves its name.
    """

    name: ClientId
    role: MemberRole
    group: str  # a client's group; "" for the other roles
    group_role: GroupRole
    approved: bool
    created_s: float
    revoked_s: float | None = None
    runs: tuple[str, ...] = ()  # ids of the runs that an observer may read; "*" is every run
    max_examples: int = DEFAULT_MAX_EXAMPLES  # largest number of questions that a client may state


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    serial: str
    member: ClientId
    key_sha256: str
    not_after_s: float
    issued_s: float
    chain_pem: bytes
    revoked_s: float | None = None
    predecessor: str = (
        ""  # serial of the certificate that asked for this one by Renew; "" for the first of a membership
    )


@dataclass(frozen=True, slots=True)
class InviteRecord:
    """An invite, with which an organisation may become a member. The record has only the hash of the invite's secret token."""

    token_sha256: str
    name: ClientId
    role: MemberRole
    group: str
    group_role: GroupRole
    needs_approval: bool
    created_s: float
    expires_s: float
    withdrawn: bool = False
    used_by_key: str = ""
    runs: tuple[str, ...] = ()  # ids of the runs that an observer may read; "*" is every run
    max_examples: int = DEFAULT_MAX_EXAMPLES  # as in Member

    def is_open(self, now_s: float) -> bool:
        return not self.withdrawn and not self.used_by_key and now_s < self.expires_s


@dataclass(frozen=True, slots=True)
class NewAuditEntry:
    """An entry that is not yet in the audit log.

    When the store adds the entry, it also stores the hash of the previous entry. So the entries form a chain.
    """

    at_s: float
    actor: str
    serial: str
    action: str
    object: str
    result: str
    facts: tuple[tuple[str, str | int | bool], ...] = ()

    @property
    def facts_json(self) -> str:
        """The entry's facts as one line of JSON with sorted keys."""
        return json.dumps(dict(self.facts), sort_keys=True, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class RosterRow:
    """An entry of the roster, with the member's peer key and the roster's head after the entry."""

    entry: RosterEntry
    key_der: bytes  # SubjectPublicKeyInfo
    head: bytes


@dataclass(frozen=True, slots=True)
class MembershipChange:
    """A change of members, certificates, invites or the roster, with its audit entry.

    The store writes the whole change and the entry in one transaction.
    """

    entry: NewAuditEntry
    members: tuple[Member, ...] = ()  # inserted or replaced
    certificates: tuple[IssuedCertificate, ...] = ()  # inserted or replaced
    invites: tuple[InviteRecord, ...] = ()  # inserted or replaced
    roster: tuple[RosterRow, ...] = ()  # appended
    spends: str | None = None  # token hash of the invite that this change uses; the database must show it as unused


@dataclass(frozen=True, slots=True)
class Everyone:
    members: Sequence[Member]
    certificates: Sequence[IssuedCertificate]
    invites: Sequence[InviteRecord]


class MembershipStore(Protocol):
    """A store of members, certificates, invites, the roster and the audit log. A change is durable when its method returns.

    Every method raises StoreFailed if the database fails; StorageFull if no space is left.
    """

    async def everyone(self) -> Everyone: ...

    async def change_membership(self, change: MembershipChange) -> AuditEntry:
        """Writes a change and its audit entry in one transaction, and returns the entry.

        Raises InviteUsed if the change uses an invite that has been used already; StoreFailed if another writer has appended to
        the roster. Then nothing is written.
        """
        ...

    async def audit_entries(self, after: int, limit: int) -> Sequence[tuple[AuditEntry, str]]:
        """Returns at most `limit` audit entries whose sequence number is above `after`, in order, each with its stored hash."""
        ...

    async def roster_rows(self, after: int, limit: int) -> Sequence[RosterRow]:
        """Returns at most `limit` rows of the roster whose sequence number is above `after`, in order."""
        ...

    async def audit_head(self) -> tuple[int, str]:
        """Returns the sequence number and the hash of the newest audit entry; (0, "") if the audit log is empty."""
        ...


def facts_of(**facts: Any) -> tuple[tuple[str, str | int | bool], ...]:
    """Returns the arguments as (name, value) pairs, sorted by name. An audit entry stores the pairs as its facts.

    Callers must not pass tokens, keys or private data.
    """
    return tuple(sorted(facts.items()))
