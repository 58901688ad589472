"""The roster: an append-only log of the members' peer keys, which every member sees.

Each entry has a head, a hash over all entries up to it: head_k = SHA-256(head_(k-1), entry k as canonical JSON), and head_0 is
empty. Members of a private round sign its head, so that they prove to each other that they see one roster. A person compares the
newest head with the other partners once, as 64 hex digits, before the names in it are pinned.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from pluralllm.common.errors.private_rounds import RosterDiverged
from pluralllm.common.text.printable import is_group_name
from pluralllm.common.words.ids import is_id

FIRST_HEAD = b""
DIGITS = 64  # hex digits of a head
FINGERPRINT = re.compile("[0-9a-f]{64}")


class RosterChange(StrEnum):
    """The change that an entry of the roster makes."""

    ADDED = "added"  # the member's first key, or its earlier key again
    REMOVED = "removed"  # the key counts no more: the membership has ended, or an administrator has reset the key
    REPLACED = "replaced"  # another key than before, after the earlier one was removed


@dataclass(frozen=True, slots=True)
class RosterEntry:
    sequence: int  # 1, 2, 3 ... without gaps
    name: str
    group: str
    fingerprint: str  # SHA-256 of the peer key, lower-case hex
    change: RosterChange

    def head_after(self, head: bytes) -> bytes:
        """Returns the roster's head after this entry. head: the one before it; FIRST_HEAD before the first entry."""
        facts = {
            "change": self.change.value,
            "fingerprint": self.fingerprint,
            "group": self.group,
            "name": self.name,
            "sequence": self.sequence,
        }
        return hashlib.sha256(head + json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).digest()


@dataclass(frozen=True, slots=True)
class Roster:
    """The roster after some number of entries. A new one is empty."""

    sequence: int = 0  # of the newest entry
    head: bytes = FIRST_HEAD
    members: Mapping[str, RosterEntry] = field(default_factory=dict)  # by name: the entry of the key that counts now
    last: Mapping[str, RosterEntry] = field(default_factory=dict)  # by name: the newest entry, also a REMOVED one
    owners: Mapping[str, str] = field(default_factory=dict)  # by fingerprint: the only name that ever had this key

    def entry_of(self, name: str) -> RosterEntry | None:
        """Returns the entry of the peer key that a member has now; None if it has none."""
        return self.members.get(name)

    def owner_of(self, fingerprint: str) -> str | None:
        """Returns the member that has, or had, a peer key; None if nobody ever had it."""
        return self.owners.get(fingerprint)

    def fingerprint_of(self, name: str) -> str | None:
        """Returns the fingerprint of a member's peer key; None if the member has none now."""
        entry = self.members.get(name)
        return None if entry is None else entry.fingerprint

    def extended(self, entries: Iterable[RosterEntry]) -> "Roster":
        """Returns this roster with further entries, oldest first. Raises RosterDiverged for the first one that cannot follow."""
        members, last, owners, sequence, head = (
            {**self.members},
            {**self.last},
            {**self.owners},
            self.sequence,
            self.head,
        )
        for entry in entries:
            if problem := _problem(entry, sequence, last.get(entry.name), owners.get(entry.fingerprint)):
                raise RosterDiverged(problem=problem)
            sequence, head = entry.sequence, entry.head_after(head)
            last[entry.name], owners[entry.fingerprint] = entry, entry.name
            if entry.change is RosterChange.REMOVED:
                members.pop(entry.name)
            else:
                members[entry.name] = entry
        return replace(self, sequence=sequence, head=head, members=members, last=last, owners=owners)

    def next_entry(self, name: str, group: str, fingerprint: str) -> RosterEntry:
        """Returns the entry that gives a member without a key this one: ADDED, or REPLACED after another key."""
        before = self.last.get(name)
        is_other = before is not None and before.fingerprint != fingerprint
        change = RosterChange.REPLACED if is_other else RosterChange.ADDED
        return RosterEntry(self.sequence + 1, name, group, fingerprint, change)

    def removal(self, name: str) -> RosterEntry | None:
        """Returns the entry that removes a member's key; None if the member has no key now."""
        entry = self.members.get(name)
        return None if entry is None else replace(entry, sequence=self.sequence + 1, change=RosterChange.REMOVED)


def parse_digest(text: str) -> bytes:
    """Returns the head that a person has typed. Spaces and the case of letters do not count.

    Raises ValueError if the text has not exactly 64 hex digits: a part of a digest could be met by trying.
    """
    digits = "".join(text.split()).lower()
    if FINGERPRINT.fullmatch(digits) is None:
        raise ValueError(f"must be the whole digest, {DIGITS} hex digits; it has {len(digits)} characters")
    return bytes.fromhex(digits)


def _problem(entry: RosterEntry, sequence: int, before: RosterEntry | None, owner: str | None) -> str:
    """Returns why an entry cannot follow; "" if it can. before: the name's newest entry. owner: the name that has had the key."""
    if entry.sequence != sequence + 1:
        return f"after entry {sequence} comes entry {entry.sequence}"
    if not is_id(entry.name) or not is_group_name(entry.group) or FINGERPRINT.fullmatch(entry.fingerprint) is None:
        return f"entry {entry.sequence} has no proper name, group or fingerprint"
    if owner not in (None, entry.name):
        return f"entry {entry.sequence} gives {entry.name} the key of {owner}"
    has_key = before is not None and before.change is not RosterChange.REMOVED
    is_same = before is not None and before.fingerprint == entry.fingerprint
    match entry.change:
        case RosterChange.REMOVED if not (has_key and is_same):
            return f"entry {entry.sequence} removes a key that {entry.name} does not have"
        case RosterChange.ADDED | RosterChange.REPLACED if has_key:
            return f"entry {entry.sequence} gives {entry.name} a second key"
        case RosterChange.ADDED if before is not None and not is_same:
            return f"entry {entry.sequence} does not say that {entry.name} has another key than before"
        case RosterChange.REPLACED if before is None or is_same:
            return f"entry {entry.sequence} replaces a key that {entry.name} did not have"
        case _:
            return ""
