"""An entry that cannot be written stops an action before it begins, and changes nothing about what has been decided already."""

import pytest
from structlog.testing import capture_logs
from support.memory_store import MemoryMembership, Tables

from pluralllm.common.errors.tree import StorageFull, WrongPhase
from pluralllm.common.trust.audit_chain import AuditEntry
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.roles import MemberRole
from pluralllm.server.members.access import Principal
from pluralllm.server.members.audit_log import ACCEPTED, BEGUN, AuditLog
from pluralllm.server.storage.membership import MembershipChange

ADMIN = Principal(ClientId("root"), MemberRole.ADMIN)
REFUSAL = WrongPhase(run="r", phase="ended", wanted="started")


class FullStore(MemoryMembership):
    """A store of members on a disk that may be full."""

    is_full = True

    async def change_membership(self, change: MembershipChange) -> AuditEntry:
        if self.is_full:
            raise StorageFull(what="the coordinator's database")
        return await super().change_membership(change)


@pytest.fixture
def store() -> FullStore:
    return FullStore(Tables())


async def test_an_action_whose_beginning_cannot_be_recorded_is_refused(store: FullStore) -> None:
    with pytest.raises(StorageFull):
        await AuditLog(store, lambda: 0.0).record(ADMIN, "StartRun", "runs/r", BEGUN)


async def test_an_outcome_that_cannot_be_recorded_stands_and_is_logged(store: FullStore) -> None:
    with capture_logs() as logs:
        await AuditLog(store, lambda: 0.0).record_outcome(ADMIN, "StartRun", "runs/r", ACCEPTED)
    [line] = logs
    assert (line["event"], line["action"], line["result"]) == ("audit.not_recorded", "StartRun", ACCEPTED)


async def test_a_refusal_that_cannot_be_recorded_stands_and_is_logged(store: FullStore) -> None:
    with capture_logs() as logs:
        await AuditLog(store, lambda: 0.0).refused(ADMIN, "StartRun", "runs/r", REFUSAL)
    assert [line["event"] for line in logs] == ["audit.refused", "audit.not_recorded"]


async def test_outcomes_and_refusals_are_recorded_when_there_is_space(store: FullStore) -> None:
    store.is_full = False
    audit = AuditLog(store, lambda: 0.0)
    await audit.record_outcome(ADMIN, "StartRun", "runs/r", ACCEPTED)
    await audit.refused(ADMIN, "StartRun", "runs/r", REFUSAL)
    entries = await audit.entries(0, 10)
    assert [entry.result for entry, _ in entries] == [ACCEPTED, "WRONG_PHASE"]
