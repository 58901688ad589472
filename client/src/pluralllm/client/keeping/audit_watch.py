"""The head of the coordinator's audit log, as this client saw it. The client complains if the log goes back or changes.

The complaint goes to the partner's own log, and `pluralllm-client doctor` reports it. The client goes on with its work: an
audit log protects the members from the operator, and their owners decide what to do.
"""

import datetime
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import structlog
from pydantic import Field

from pluralllm.client.keeping.history_copy import HistoryCopy
from pluralllm.client.link.tasks import AuditHead, ShownEntry
from pluralllm.common.errors.membership import AuditBroken, RoleForbids
from pluralllm.common.errors.tree import PluralError, StorageFull
from pluralllm.common.process.files import as_state, damaged, read_state, write_durably
from pluralllm.common.trust.audit_chain import FIRST_PREVIOUS, check_chain
from pluralllm.common.trust.record_signatures import RecordVerifier

log = structlog.get_logger()

FILE = "audit_head.json"  # in the folder of the histories; "_" is in no run's name
MAX_HEADS = 500  # heads that are kept, so that a later reading of the whole log can compare them
CHECK_EVERY_S = 60.0
CHECK_FAILS_S = 3600.0  # after this time without the entry that was the head, the client complains
COMPLAIN_EVERY_S = 3600.0  # complaints of one kind, after the first
MEND = "restore it from a backup, or move it away: then no earlier head is compared with the next one"
NO_HEAD = AuditHead(0, "", b"")

FetchEntries = Callable[[int, int], Awaitable[Sequence[ShownEntry]]]  # after, limit


@dataclass(frozen=True, slots=True)
class Complaint:
    """A head that contradicts what this client had seen before."""

    problem: str
    sequence: int
    sha256: str
    signature: str  # hex
    seen: str  # UTC, RFC 3339


@dataclass(frozen=True, slots=True)
class SeenHeads:
    """The content of the file: the newest head, some heads before, and the last complaint."""

    sequence: int = 0
    sha256: str = ""
    signature: str = ""  # hex; with it the head is evidence
    seen: str = ""  # UTC, RFC 3339
    heads: dict[Annotated[str, Field(pattern=r"^\d+$")], str] = field(
        default_factory=dict
    )  # hash by number, oldest first
    complaint: Complaint | None = None


def read_heads(folder: Path) -> SeenHeads:
    """Reads the heads that this client has seen; none if there is no file. Raises InvalidConfig if the file is damaged."""
    path = folder / FILE
    if not path.is_file():
        return SeenHeads()
    try:
        facts = read_state(path, MEND)
        complaint = facts.pop("complaint")
        heads = SeenHeads(**facts, complaint=None if complaint is None else Complaint(**complaint))
        return as_state(asdict(heads), SeenHeads)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise damaged(path, str(error), MEND) from error


class AuditWatch:
    """Compares the audit log's head in each answer to a poll with the heads before."""

    def __init__(
        self,
        folder: Path,
        fetch: FetchEntries,
        verifier: RecordVerifier | None = None,
        copy: HistoryCopy | None = None,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Reads what an earlier process has seen. folder: the folder of the histories. fetch: asks for audit entries.

        verifier: the federation's record key; None if it is not known. copy: the partner's second place for every head.
        """
        self._folder, self._fetch, self._verifier, self._copy = folder, fetch, verifier, copy
        self._monotonic_s = monotonic_s
        self._seen = read_heads(folder)  # durable
        self._is_kept = (folder / FILE).is_file()
        self._newest = (self._seen.sequence, self._seen.sha256)  # it may be newer than the durable head
        self._next_check_s = -1.0  # monotonic
        self._failing_since_s: float | None = None  # monotonic; None while the checks succeed
        self._quiet_until_s: dict[str, float] = {}  # by kind of complaint, monotonic

    async def look(self, head: AuditHead | None) -> None:
        """Compares a head with the heads before, and stores it. None, from a coordinator of an older release, is no head.

        At most once in CHECK_EVERY_S seconds, the client asks whether the entry that was the head still has its hash, and then
        stores the new head durably.
        """
        if self._is_kept and not (self._folder / FILE).is_file():  # the partner has agreed to another log
            self._seen, self._newest, self._is_kept, self._next_check_s = SeenHeads(), (0, ""), False, -1.0
        if head is None:
            if self._newest[0]:
                self._complain(NO_HEAD, "is not shown any more")
            return
        if (head.sequence, head.sha256) == self._newest == (self._seen.sequence, self._seen.sha256):
            return
        if self._verifier is not None and not self._verifier.has_signed_audit_head(
            head.sequence, head.sha256, head.signature
        ):
            self._complain(head, "is not signed with the federation's record key")
        elif head.sequence < self._newest[0]:
            self._complain(head, "goes back from entry {} to entry {}", self._newest[0], head.sequence)
        elif head.sequence == self._newest[0] and head.sha256 != self._newest[1]:
            self._complain(head, "has another entry {} than before", head.sequence)
        else:
            self._newest = (head.sequence, head.sha256)
            await self._store_if_continued(head)

    async def _store_if_continued(self, head: AuditHead) -> None:
        """Stores a newer head if the entry that was the head still has its hash; complains if it does not."""
        now_s = self._monotonic_s()
        if now_s < self._next_check_s:
            return
        seen = self._seen
        if seen.sequence:
            try:
                entries = await self._fetch(seen.sequence - 1, 1)
            except RoleForbids:
                self._complain(head, "does not show this client entry {}", seen.sequence)
                self._next_check_s = now_s + CHECK_EVERY_S
                return
            except PluralError:  # the next poll tries again
                if self._failing_since_s is None:
                    self._failing_since_s = now_s
                elif now_s - self._failing_since_s > CHECK_FAILS_S:
                    self._complain(head, "has not shown entry {} for long", seen.sequence)
                return
            self._failing_since_s = None
            if [(one.entry.sequence, one.sha256) for one in entries] != [(seen.sequence, seen.sha256)]:
                self._complain(head, "has another entry {} than before", seen.sequence)
                return
        self._next_check_s = now_s + CHECK_EVERY_S
        heads = dict([*seen.heads.items(), (str(head.sequence), head.sha256)][-MAX_HEADS:])
        newest = (head.sequence, head.sha256, head.signature.hex(), _now())
        self._write(SeenHeads(*newest, heads=heads, complaint=seen.complaint))
        if self._copy is not None:
            self._copy.append(audit_sequence=head.sequence, audit_sha256=head.sha256, signature=head.signature.hex())

    def _complain(self, head: AuditHead, kind: str, *entries: int) -> None:
        """Logs and stores a contradiction, once for each head and problem, and once in COMPLAIN_EVERY_S for each kind.

        A coordinator that contradicts itself with each answer fills no log. kind: the problem, with {} for each number of an
        entry.
        """
        problem, now_s = kind.format(*entries), self._monotonic_s()
        before = self._seen.complaint
        if before is not None and (before.problem, before.sequence, before.sha256) == (
            problem,
            head.sequence,
            head.sha256,
        ):
            return
        if now_s < self._quiet_until_s.get(kind, now_s):
            return
        self._quiet_until_s[kind] = now_s + COMPLAIN_EVERY_S
        log.error(
            "audit.contradicted",
            problem=f"the coordinator's audit log {problem}",
            sequence=head.sequence,
            sha256=head.sha256,
            kept_sequence=self._newest[0],
            kept_sha256=self._newest[1],
        )
        complaint = Complaint(problem, head.sequence, head.sha256, head.signature.hex(), _now())
        self._write(replace(self._seen, complaint=complaint))

    def _write(self, seen: SeenHeads) -> None:
        """Stores what this client has seen. A full or broken disk is logged, because the client must go on."""
        self._seen = seen
        try:
            write_durably(self._folder / FILE, json.dumps(asdict(seen)).encode())
            self._is_kept = True
        except (StorageFull, OSError) as error:
            log.error("audit.not_kept", file=str(self._folder / FILE), problem=str(error))


async def verified_log(
    folder: Path, fetch: FetchEntries, page_size: int, max_pages: int
) -> tuple[list[ShownEntry], bool]:
    """Reads the audit log, and checks its hash chain and the heads that this client has seen.

    Returns the entries, oldest first, and whether they are the whole log. Raises AuditBroken if the chain is broken, or if the
    log contradicts a head that this client has seen.
    """
    shown: list[ShownEntry] = []
    end, sha256, is_whole = 0, FIRST_PREVIOUS, False
    for _ in range(max_pages):
        page = await fetch(end, page_size)
        end, sha256 = check_chain([(one.entry, one.sha256) for one in page], end, sha256)
        shown += page
        if is_whole := len(page) < page_size:
            break
    seen = read_heads(folder)
    for number, hash_before in seen.heads.items():
        hash_now = shown[int(number) - 1].sha256 if int(number) <= end else None
        if hash_now is None and is_whole:
            raise AuditBroken(problem=f"it ends with entry {end}, but this machine has seen entry {number}")
        if hash_now not in (None, hash_before):
            raise AuditBroken(problem=f"entry {number} is not the one that this machine has seen before")
    return shown, is_whole


def _now() -> str:
    return datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds")
