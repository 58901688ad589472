"""Who did what: the hash-chained log, written before it is done.

A refusal is logged each time and audited once an hour for each (actor, action, object, reason), so many of each actor: whoever is
refused must not be able to fill the disk, nor to keep another's refusal out of the log by filling its list.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import structlog

from pluralllm.common.errors.tree import PluralError
from pluralllm.common.trust.audit_chain import AuditEntry
from pluralllm.common.words.ids import ClientId
from pluralllm.server.members.access import Principal
from pluralllm.server.storage.membership import Deed, MembershipChange, MembershipStore, facts_of

log = structlog.get_logger()

ACCEPTED = "ACCEPTED"
NOBODY = ""  # how an entry writes that its actor has proven no identity
SAME_REFUSAL_S = 3600.0
MAX_REFUSALS_REMEMBERED = 1000  # of one actor
MAX_OBJECT = 200


class AuditLog:
    """One for each process; every change of the membership goes through it too, so that `head` is the newest entry."""

    def __init__(self, store: MembershipStore, wall_s: Callable[[], float]) -> None:
        self._store = store
        self._wall_s = wall_s
        self._refusals: defaultdict[ClientId | None, dict[tuple[str, str, str], float]] = defaultdict(dict)  # by actor
        self.head: tuple[int, str] = (0, "")

    async def start(self) -> None:
        self.head = await self._store.audit_head()

    async def change(self, change: MembershipChange) -> None:
        """A change and its deed, in one transaction. Raises InviteUsed, StoreFailed, StorageFull."""
        entry = await self._store.change_membership(change)
        self.head = max(self.head, (entry.sequence, entry.sha256))
        facts = dict(change.deed.facts)
        log.info("audit", actor=entry.actor, action=entry.action, object=entry.object, result=entry.result, **facts)

    async def record(self, actor: Principal, action: str, about: str) -> None:
        """That `actor` does this now; durable when it returns."""
        await self.change(MembershipChange(self.deed(actor, action, about)))

    async def refused(self, actor: Principal | None, action: str, about: str, error: PluralError) -> None:
        """That somebody was refused. `actor` is None while nobody has proven an identity."""
        about = about[:MAX_OBJECT]
        name = actor.name if actor is not None else None
        log.warning("audit.refused", actor=name or NOBODY, action=action, object=about, reason=error.reason)
        now_s, key = self._wall_s(), (action, about, error.reason)
        mine = self._refusals[name]
        if now_s - mine.get(key, -SAME_REFUSAL_S) < SAME_REFUSAL_S:
            return
        if len(mine) >= MAX_REFUSALS_REMEMBERED:
            mine = self._refusals[name] = {k: at for k, at in mine.items() if now_s - at < SAME_REFUSAL_S}
            if len(mine) >= MAX_REFUSALS_REMEMBERED:
                return  # this actor's list of this hour is full; the log above has it
        mine[key] = now_s
        await self.change(MembershipChange(self.deed(actor, action, about, error.reason)))

    async def entries(self, after: int, limit: int) -> Sequence[tuple[AuditEntry, str]]:
        """Entries with sequence > after, each with its stored hash."""
        return await self._store.audit_entries(after, limit)

    def deed(
        self, actor: Principal | None, action: str, about: str, result: str = ACCEPTED, **facts: str | int | bool
    ) -> Deed:
        name, serial = (actor.name, actor.serial) if actor is not None else (NOBODY, "")
        return Deed(self._wall_s(), name, serial, action, about[:MAX_OBJECT], result, facts_of(**facts))
