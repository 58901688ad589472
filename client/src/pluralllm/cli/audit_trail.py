"""Verifies the audit log on the reader's machine, by its hash chain.

Each audit entry holds the hash of the entry before it. The head is the hash of the last entry. The reader's machine keeps the
head of the last reading, because an intruder in the coordinator can write a new, consistent chain. Such a chain does not
contain the head that the reader's machine kept.
"""

import datetime
import json
from pathlib import Path
from typing import Any

from pluralllm.common.errors.membership import AuditBroken
from pluralllm.common.errors.tree import StorageFull
from pluralllm.common.process.console import say
from pluralllm.common.process.files import damaged, read_state, write_durably
from pluralllm.common.trust.audit_chain import FIRST_PREVIOUS, AuditEntry, check_chain
from pluralllm.common.words.names import MemberName
from pluralllm.operator.remote import Remote

MEND = "move it away: the next reading is then compared with no earlier one"


def verified_entries(remote: Remote, identity_folder: Path | None) -> tuple[list[dict[str, Any]], str, bool]:
    """Reads the audit log and verifies its hash chain.

    Returns the entries (oldest first), the hash of the last entry, and whether these entries are the whole log.
    identity_folder: folder that keeps the hash of the last entry for the next reading. None keeps no hash; use None for a
    connection in plain text, because the coordinator does not prove its identity there.
    Raises AuditBroken if the chain is broken, or if the entry that came last at the previous reading has another hash now.
    """
    events, whole = remote.audit_events()
    pairs = [(_entry(event), event["sha256"]) for event in events]
    _, head = check_chain(pairs)
    if identity_folder is None:
        return events, head, whole
    head_file = identity_folder / "audit-head.json"
    if head_file.is_file():
        last_seen = read_state(head_file, MEND)
        try:
            sequence, seen_sha256, day = int(last_seen["sequence"]), last_seen["sha256"], last_seen["seen"]
        except (TypeError, KeyError, ValueError) as error:
            raise damaged(head_file, "it has no head", MEND) from error
        hash_now = pairs[sequence - 1][1] if 0 < sequence <= len(pairs) else FIRST_PREVIOUS
        if sequence and hash_now != seen_sha256:
            raise AuditBroken(problem=f"entry {sequence} is not the one this machine saw on {day}")
    if identity_folder.is_dir():
        _keep(head_file, len(pairs), head)
    return events, head, whole


def _keep(head_file: Path, sequence: int, head: str) -> None:
    """Keeps the head for the next reading. What was verified is shown even if the disk is full or cannot be written."""
    try:
        today = datetime.datetime.now(tz=datetime.UTC).strftime("%Y-%m-%d")
        write_durably(head_file, json.dumps({"sequence": sequence, "sha256": head, "seen": today}).encode())
    except (OSError, StorageFull) as error:
        say(f"note: the head is not kept, so the next reading is not compared with this one: {error}", err=True)


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
