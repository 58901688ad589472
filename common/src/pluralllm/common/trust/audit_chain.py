"""The audit log's hash chain: each entry's hash covers the entry and the hash before it, so none can be changed or left out
without every later hash being another. Written by the coordinator, checked by whoever reads it.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from pluralllm.common.errors.membership import AuditBroken

FIRST_PREVIOUS = ""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who asked for what, and what came of it."""

    sequence: int  # 1, 2, 3 ... without gaps
    at_us: int  # microseconds since the epoch: whole, so that it is the same number everywhere
    actor: str  # a member's name; "" when nobody had proven an identity
    serial: str  # of the actor's certificate; "" without one
    action: str
    object: str
    result: str  # ACCEPTED or the name of an error leaf
    facts_json: str
    previous_sha256: str

    @property
    def sha256(self) -> str:
        """The link to the next entry."""
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


def check_chain(
    entries: Iterable[tuple[AuditEntry, str]], sequence: int = 0, sha256: str = FIRST_PREVIOUS
) -> tuple[int, str]:
    """Follows (entry, stored hash) pairs from a known head on; the new head. Raises AuditBroken at the first fault."""
    for entry, stored in entries:
        if entry.sequence != sequence + 1:
            raise AuditBroken(problem=f"after entry {sequence} comes entry {entry.sequence}")
        if entry.previous_sha256 != sha256:
            raise AuditBroken(problem=f"entry {entry.sequence} does not follow the entry {sequence} that is known")
        if entry.sha256 != stored:
            raise AuditBroken(problem=f"entry {entry.sequence} is not what its hash says")
        sequence, sha256 = entry.sequence, stored
    return sequence, sha256
