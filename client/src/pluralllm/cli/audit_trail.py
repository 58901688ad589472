"""The audit log, verified by its reader: the hash chain from its first entry, and its head at the last reading.

An intruder in the coordinator can write a new chain that is consistent; it cannot contain the head that was seen before.
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
    """Reads the audit log and verifies it. Returns the entries, oldest first, the last one's hash, and whether these are all.

    identity_folder: keeps the head for the next reading. None in plain text, where no coordinator proves its identity.
    Raises: AuditBroken.
    """
    events, whole = remote.audit_events()
    pairs = [(_entry(event), event["sha256"]) for event in events]
    _, head = check_chain(pairs)
    if identity_folder is None:
        return events, head, whole
    head_file = identity_folder / "audit-head.json"
    if head_file.is_file():
        last_seen = json.loads(head_file.read_text())
        hash_now = pairs[last_seen["sequence"] - 1][1] if 0 < last_seen["sequence"] <= len(pairs) else FIRST_PREVIOUS
        if last_seen["sequence"] and hash_now != last_seen["sha256"]:
            raise AuditBroken(
                problem=f"entry {last_seen['sequence']} is not the one this machine saw on {last_seen['seen']}"
            )
    if identity_folder.is_dir():
        today = datetime.datetime.now(tz=datetime.UTC).strftime("%Y-%m-%d")
        write_durably(head_file, json.dumps({"sequence": len(pairs), "sha256": head, "seen": today}).encode())
    return events, head, whole


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
