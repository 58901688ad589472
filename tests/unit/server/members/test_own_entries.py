"""The audit entries that a client may read: its own, those about its tasks, and those about the runs of its group."""

import pytest

from pluralllm.common.trust.audit_chain import AuditEntry
from pluralllm.common.words.ids import ClientId, RunId
from pluralllm.common.words.names import RunName
from pluralllm.server.members.own_entries import concerns

ANN, RUNS = ClientId("ann"), {str(RunName(RunId("first")))}


@pytest.mark.parametrize(
    ("actor", "about", "expected"),
    [
        ("ann", "runs/other", True),
        ("ann", "", True),
        ("admin", "members/ann", True),
        ("admin", "members/anna", False),
        ("admin", "members/ben", False),
        ("admin", "runs/first", True),
        ("admin", "runs/first/rounds/3", True),
        ("admin", "runs/first-two", False),
        ("admin", "runs/other", False),
        ("admin", "runs/-", True),
        ("ben", "runs/first/rounds/3/tasks/train-ann", True),
        ("ben", "runs/first/rounds/3/tasks/train-ben", False),
        ("ben", "runs/first/rounds/3/tasks/train-ben-ann", False),
        ("ben", "runs/other/rounds/3/tasks/evaluate-ann", True),
        ("", "", False),
    ],
)
def test_an_entry_concerns_the_actor_the_object_and_the_readers_of_the_run(
    actor: str, about: str, expected: bool
) -> None:
    entry = AuditEntry(1, 0, actor, "", "Action", about, "ACCEPTED", "{}", "")
    assert concerns(entry, ANN, RUNS) == expected
