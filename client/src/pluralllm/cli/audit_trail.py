"""The audit log as read from outside: the whole chain is followed, and its head is remembered from one reading to the next.

A coordinator that is broken into can write a new chain that fits together; it cannot make it fit what was seen before.
"""

import datetime
import json
from pathlib import Path
from typing import Any

from pluralllm.common.errors.membership import AuditBroken
from pluralllm.common.process.files import write_durably
from pluralllm.common.trust.audit_chain import FIRST_PREVIOUS, AuditEntry, check_chain
from pluralllm.common.words.names import MemberName
from pluralllm.operator.remote import Remote


def verified_entries(remote: Remote, identity_folder: Path | None) -> tuple[list[dict[str, Any]], str, bool]:
    """Entries, oldest first, the last one's hash, and whether these are all. The folder remembers the head. Raises AuditBroken.

    In plain text there is no folder: no coordinator there proves that it is the one seen before.
    """
    found, whole = remote.audit_events()
    pairs = [(_entry(event), event["sha256"]) for event in found]
    _, head = check_chain(pairs)
    if identity_folder is None:
        return found, head, whole
    memory = identity_folder / "audit-head.json"
    if memory.is_file():
        seen = json.loads(memory.read_text())
        now = pairs[seen["sequence"] - 1][1] if 0 < seen["sequence"] <= len(pairs) else FIRST_PREVIOUS
        if seen["sequence"] and now != seen["sha256"]:
            raise AuditBroken(problem=f"entry {seen['sequence']} is not the one this machine saw on {seen['seen']}")
    if identity_folder.is_dir():
        today = datetime.datetime.now(tz=datetime.UTC).strftime("%Y-%m-%d")
        write_durably(memory, json.dumps({"sequence": len(pairs), "sha256": head, "seen": today}).encode())
    return found, head, whole


def _entry(event: dict[str, Any]) -> AuditEntry:
    moment = datetime.datetime.fromisoformat(event["time"])
    since = moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return AuditEntry(
        sequence=event["sequence"],
        at_us=since // datetime.timedelta(microseconds=1),
        actor=MemberName.parse(event["actor"]).member if event["actor"] else "",
        serial=event["serial"],
        action=event["action"],
        object=event["object"],
        result=event["result"],
        facts_json=event["facts_json"],
        previous_sha256=event["previous_sha256"],
    )
