"""The entries of the audit log that a client may read: those about itself and those about the runs that it may read."""

from collections.abc import Collection

from pluralllm.common.trust.audit_chain import AuditEntry
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.names import MemberName, RunName, TaskKind


def concerns(entry: AuditEntry, member: ClientId, runs: Collection[RunName]) -> bool:
    """Returns whether an audit entry concerns a member, who may then read the entry.

    An entry concerns the member that acted, the member that is the object, and the member whose task is the object. An entry
    about a run, but not about another member's task, concerns each member that may read the run. runs: the names of those runs.
    """
    if entry.actor == member or entry.object == str(MemberName(member)):
        return True
    if "/tasks/" in entry.object:
        return any(entry.object.endswith(f"/tasks/{kind}-{member}") for kind in TaskKind)
    return any(entry.object == str(run) or entry.object.startswith(f"{run}/") for run in runs)
