"""The hash-chained audit log of who did what. The entry of an action is durable before the action begins.

Every refusal goes to the process log. The audit log gets at most one entry an hour for refusals with the same actor, action,
object and reason. The number of such entries for each actor is limited, too. So a caller who is refused cannot fill the disk
or use up the limit of another actor.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import structlog

from pluralllm.common.errors.tree import PluralError
from pluralllm.common.trust.audit_chain import AuditEntry
from pluralllm.common.words.ids import ClientId
from pluralllm.server.members.access import Principal
from pluralllm.server.storage.membership import MembershipChange, MembershipStore, NewAuditEntry, facts_of

log = structlog.get_logger()

ACCEPTED = "ACCEPTED"
NOBODY = ""  # the actor of an entry about somebody who has proven no identity
SAME_REFUSAL_S = 3600.0
MAX_REFUSALS_REMEMBERED = 100  # refusals remembered for one actor: the largest number of its entries in an hour
MAX_OBJECT = 200


class AuditLog:
    """The audit log of one process.

    Every change of the membership goes through this object. So its field `head` always holds the sequence number and the hash
    of the newest entry."""

    def __init__(self, store: MembershipStore, wall_s: Callable[[], float]) -> None:
        self._store = store
        self._wall_s = wall_s
        self._refusals: defaultdict[ClientId | None, dict[tuple[str, str, str], float]] = defaultdict(dict)  # by actor
        self.head: tuple[int, str] = (0, "")  # sequence and hash

    async def start(self) -> None:
        """Reads the newest entry's sequence number and hash from the store into `head`."""
        self.head = await self._store.audit_head()

    async def change(self, change: MembershipChange) -> None:
        """Writes a change of the membership and its audit entry in one transaction.

        Raises InviteUsed if the change uses an invite that has been used already; StoreFailed if the database fails;
        StorageFull if the disk is full.
        """
        entry = await self._store.change_membership(change)
        self.head = max(self.head, (entry.sequence, entry.sha256))
        facts = dict(change.entry.facts)
        log.info("audit", actor=entry.actor, action=entry.action, object=entry.object, result=entry.result, **facts)

    async def record(self, actor: Principal, action: str, about: str) -> None:
        """Records that `actor` begins an action now. The entry is durable when the method returns.

        action: the name of the call. about: the name of the run, task or member that the call concerns.
        """
        await self.change(MembershipChange(self.new_entry(actor, action, about)))

    async def refused(self, actor: Principal | None, action: str, about: str, error: PluralError) -> None:
        """Records the refusal of an action. `actor` is None if the caller has proven no identity.

        action: the name of the call. about: the name of the run, task or member that the call concerns. If a refusal is
        repeated within an hour, or if the actor has too many refusals, only the process log records the refusal.
        """
        about = about[:MAX_OBJECT]
        name = actor.name if actor is not None else None
        log.warning("audit.refused", actor=name or NOBODY, action=action, object=about, reason=error.reason)
        now_s, key = self._wall_s(), (action, about, error.reason)
        of_actor = self._refusals[name]
        if now_s - of_actor.get(key, -SAME_REFUSAL_S) < SAME_REFUSAL_S:
            return
        if len(of_actor) >= MAX_REFUSALS_REMEMBERED:
            of_actor = self._refusals[name] = {k: at for k, at in of_actor.items() if now_s - at < SAME_REFUSAL_S}
            if len(of_actor) >= MAX_REFUSALS_REMEMBERED:
                return  # the limit of this actor for this hour is used up; the process log has the refusal
        of_actor[key] = now_s
        await self.change(MembershipChange(self.new_entry(actor, action, about, error.reason)))

    async def entries(self, after: int, limit: int) -> Sequence[tuple[AuditEntry, str]]:
        """Returns audit entries whose sequence number is above `after`, each with its stored hash; at most `limit`."""
        return await self._store.audit_entries(after, limit)

    def new_entry(
        self, actor: Principal | None, action: str, about: str, result: str = ACCEPTED, **facts: str | int | bool
    ) -> NewAuditEntry:
        """Makes an audit entry with the present time, for a MembershipChange.

        actor: None if the caller has no proven identity. action: the name of the call. about: the name of the resource that
        the call concerns. result: ACCEPTED or an error code. facts: further values to record.
        """
        name, serial = (actor.name, actor.serial) if actor is not None else (NOBODY, "")
        return NewAuditEntry(self._wall_s(), name, serial, action, about[:MAX_OBJECT], result, facts_of(**facts))
