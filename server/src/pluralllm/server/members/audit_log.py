"""The hash-chained audit log of who did what, with which outcome.

An action that steers runs has two entries: one is durable before the action begins, and one with the outcome follows. A change of
the membership has one entry, in the transaction of the change. The log gets at most one entry an hour for other refusals with the
same actor, action, object and reason, and the process log one line a minute. Their number is limited for each actor, too. So a
caller who is refused cannot fill the disk or use up the limit of another actor.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from pluralllm.common.errors.tree import PluralError
from pluralllm.common.trust.audit_chain import AuditEntry
from pluralllm.common.words.ids import ClientId
from pluralllm.server.members.access import Principal
from pluralllm.server.members.attempts import News
from pluralllm.server.storage.membership import MembershipChange, MembershipStore, NewAuditEntry, facts_of

log = structlog.get_logger()

BEGUN = "BEGUN"  # result of the entry before an action
ACCEPTED = "ACCEPTED"
CALLER_GONE = "CALLER_GONE"  # the caller hung up before the outcome was known; the run's own log has it
NOBODY = ""  # the actor of an entry about somebody who has proven no identity
SAME_REFUSAL_S = 3600.0
SAME_LINE_S = 60.0
MAX_REFUSALS_REMEMBERED = 100  # refusals remembered for one actor: the largest number of its entries in an hour
MAX_OBJECT = 200


@dataclass(slots=True)
class Repeated:
    """The times in seconds of the newest audit entry and of the newest line in the process log about one kind of refusal."""

    recorded_s: float
    logged_s: float


class AuditLog:
    """The audit log of one process.

    Every change of the membership goes through this object. So its field `head` always holds the sequence number and the hash
    of the newest entry."""

    def __init__(self, store: MembershipStore, wall_s: Callable[[], float]) -> None:
        self._store = store
        self._wall_s = wall_s
        # By actor, then by action, object and reason.
        self._refusals: defaultdict[ClientId | None, dict[tuple[str, str, str], Repeated]] = defaultdict(dict)
        self._too_many = News()
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

    async def record(self, actor: Principal, action: str, about: str, result: str) -> None:
        """Records that `actor` begins an action now, or its outcome. The entry is durable when the method returns.

        action: the name of the call. about: the name of the run, task or member that the call concerns. result: BEGUN, ACCEPTED,
        CALLER_GONE or an error code.
        """
        await self.change(MembershipChange(self.new_entry(actor, action, about, result)))

    async def record_outcome(self, actor: Principal, action: str, about: str, result: str) -> None:
        """Records the outcome of an action, as `record` does. An outcome that cannot be recorded, as on a full disk, stands.

        The entry before the action is durable then, and the process log has the outcome.
        """
        try:
            await self.record(actor, action, about, result)
        except PluralError as error:
            facts = {"actor": actor.name, "action": action, "object": about, "result": result}
            log.error("audit.not_recorded", problem=str(error), **facts)

    async def refused(self, actor: Principal | None, action: str, about: str, error: PluralError) -> None:
        """Records the refusal of an action. `actor` is None if the caller has proven no identity.

        action: the name of the call. about: the name of the run, task or member that the call concerns. If a refusal is
        repeated within an hour, only the process log records it, once a minute. If the actor has too many refusals in an hour,
        the process log says so once a minute.
        """
        about = about[:MAX_OBJECT]
        name = actor.name if actor is not None else None
        facts = {"actor": name or NOBODY, "action": action, "object": about, "reason": error.reason}
        now_s, key = self._wall_s(), (action, about, error.reason)
        of_actor = self._refusals[name]
        if (repeated := of_actor.get(key)) is not None and now_s - repeated.recorded_s < SAME_REFUSAL_S:
            if now_s - repeated.logged_s >= SAME_LINE_S:
                repeated.logged_s = now_s
                log.warning("audit.refused", **facts)
            return
        if len(of_actor) >= MAX_REFUSALS_REMEMBERED:
            recent = {key: seen for key, seen in of_actor.items() if now_s - seen.recorded_s < SAME_REFUSAL_S}
            of_actor = self._refusals[name] = recent
            if len(of_actor) >= MAX_REFUSALS_REMEMBERED:
                if self._too_many.is_news(name or NOBODY, now_s):
                    log.warning("audit.refusals_not_recorded", limit=MAX_REFUSALS_REMEMBERED, **facts)
                return
        of_actor[key] = Repeated(now_s, now_s)
        log.warning("audit.refused", **facts)
        try:
            await self.change(MembershipChange(self.new_entry(actor, action, about, error.reason)))
        except PluralError as failure:  # the caller gets its refusal all the same
            log.error("audit.not_recorded", problem=str(failure), **facts)

    async def entries(self, after: int, limit: int) -> Sequence[tuple[AuditEntry, str]]:
        """Returns audit entries whose sequence number is above `after`, each with its stored hash; at most `limit`."""
        return await self._store.audit_entries(after, limit)

    def new_entry(
        self, actor: Principal | None, action: str, about: str, result: str = ACCEPTED, **facts: str | int | bool
    ) -> NewAuditEntry:
        """Makes an audit entry with the present time, for a MembershipChange.

        actor: None if the caller has no proven identity. action: the name of the call. about: the name of the resource that
        the call concerns. result: as for `record`. facts: further values to record.
        """
        name, serial = (actor.name, actor.serial) if actor is not None else (NOBODY, "")
        return NewAuditEntry(self._wall_s(), name, serial, action, about[:MAX_OBJECT], result, facts_of(**facts))
