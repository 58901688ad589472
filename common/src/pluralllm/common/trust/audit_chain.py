"""The audit log's hash chain: the hash of each entry covers the entry and the hash of the previous entry.

A change or removal of one entry would change the hashes of all later entries. The coordinator writes the chain, and readers of
the log check the chain.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from pluralllm.common.errors.membership import AuditBroken

FIRST_PREVIOUS = ""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One entry of the audit log: the member that asked for an action, the action, the object of the action, and the result."""

    sequence: int  # 1, 2, 3 ... without gaps
    at_us: int  # microseconds since the epoch; an integer, so that it is the same number in every program
    actor: str  # a member's name; "" if the caller had not proven an identity
    serial: str  # serial number of the actor's certificate; "" without one
    action: str
    object: str
    result: str  # ACCEPTED, BEGUN before an action that steers runs, or the name of an error
    facts_json: str
    previous_sha256: str

    @property
    def sha256(self) -> str:
        """The entry's hash in lower-case hex. The next entry repeats the hash as `previous_sha256`."""
        return hashlib.sha256(
            json.dumps(
                [
                    self.sequence,
                    self.at_us,
                    self.actor,
                    self.serial,
                    self.action,
                    self.object,
                    self.result,
                    self.facts_json,
                    self.previous_sha256,
                ],
                separators=(",", ":"),
            ).encode()
        ).hexdigest()


@dataclass(frozen=True, slots=True)
class WithheldEntry:
    """An entry whose content the reader may not read. Its hash can be compared with what others saw, but not computed."""

    sequence: int
    previous_sha256: str


def check_chain(
    entries: Iterable[tuple[AuditEntry | WithheldEntry, str]], sequence: int = 0, sha256: str = FIRST_PREVIOUS
) -> tuple[int, str]:
    """Checks that entries continue a hash chain from its known end. Returns the new end: the last entry's number and hash.

    entries: each entry with its stored hash, oldest first. sequence, sha256: number and hash of the last entry that was checked
    before; the defaults mean that no entry was checked before.
    Raises AuditBroken at the first entry that does not continue the chain.
    """
    for entry, stored in entries:
        if entry.sequence != sequence + 1:
            raise AuditBroken(problem=f"after entry {sequence} comes entry {entry.sequence}")
        if entry.previous_sha256 != sha256:
            raise AuditBroken(problem=f"entry {entry.sequence} does not follow the entry {sequence} that is known")
        if isinstance(entry, AuditEntry) and entry.sha256 != stored:
            raise AuditBroken(problem=f"entry {entry.sequence} is not what its hash says")
        sequence, sha256 = entry.sequence, stored
    return sequence, sha256
