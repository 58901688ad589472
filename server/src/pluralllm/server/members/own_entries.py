"""The entries of the audit log that a client may read: those about itself and those about the runs that it may read."""

import contextlib
from collections.abc import Set

from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.trust.audit_chain import AuditEntry
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.names import NEWEST, MemberName, RunName, TaskName


def concerns(entry: AuditEntry, member: ClientId, runs: Set[str]) -> bool:
    """Returns whether an audit entry concerns a member, who may then read the entry.

    An entry concerns the member that acted, the member that is the object, and the member whose task is the object. An entry
    about a run, but not about another member's task, concerns each member that may read the run. runs: the names of those runs.
    Earlier releases steered "the newest run" without its name in the entry: it may have been any run, and concerns every member.
    """
    if entry.actor == member or entry.object in (str(MemberName(member)), str(RunName(NEWEST))):
        return True
    with contextlib.suppress(InvalidArgument):
        return TaskName.parse(entry.object).client == member
    return "/".join(entry.object.split("/", 2)[:2]) in runs
