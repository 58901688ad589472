"""The watch over the audit log: it follows an honest log, and complains once about one that goes back or changes."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from pluralllm.client.keeping.audit_watch import (
    CHECK_EVERY_S,
    CHECK_FAILS_S,
    COMPLAIN_EVERY_S,
    FILE,
    AuditWatch,
    read_heads,
    verified_log,
)
from pluralllm.client.keeping.history_copy import HistoryCopy
from pluralllm.client.link.tasks import AuditHead, ShownEntry
from pluralllm.common.errors.membership import AuditBroken, RoleForbids
from pluralllm.common.errors.tree import InvalidConfig, PluralError, Unreachable
from pluralllm.common.trust.audit_chain import AuditEntry, WithheldEntry
from pluralllm.common.trust.certificates import new_key
from pluralllm.common.trust.record_signatures import RecordSigner, RecordVerifier

SIGNER = RecordSigner("fed", new_key())
VERIFIER = RecordVerifier("fed", SIGNER.public_der)


class Log:
    """A coordinator's audit log. Every second entry is withheld from the client."""

    def __init__(self, length: int, label: str = "true", first: Sequence[AuditEntry] = ()) -> None:
        self.entries = list(first)
        while len(self.entries) < length:
            number = len(self.entries) + 1
            previous = self.entries[-1].sha256 if self.entries else ""
            self.entries.append(AuditEntry(number, number, "admin", "", label, "runs/r", "ACCEPTED", "{}", previous))
        self.calls: list[tuple[int, int]] = []
        self.error: PluralError | None = None

    def head(self, number: int | None = None) -> AuditHead:
        number = len(self.entries) if number is None else number
        sha256 = self.entries[number - 1].sha256 if number else ""
        return AuditHead(number, sha256, SIGNER.of_audit_head(number, sha256))

    async def fetch(self, after: int, limit: int) -> list[ShownEntry]:
        self.calls.append((after, limit))
        if self.error is not None:
            raise self.error
        return [shown(entry) for entry in self.entries[after : after + limit]]


def shown(entry: AuditEntry) -> ShownEntry:
    withheld = WithheldEntry(entry.sequence, entry.previous_sha256)
    return ShownEntry(withheld if entry.sequence % 2 else entry, entry.sha256)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        self.now_s += CHECK_EVERY_S
        return self.now_s


def watch(folder: Path, log: Log, clock: Any = None, copy: HistoryCopy | None = None) -> AuditWatch:
    return AuditWatch(folder, log.fetch, VERIFIER, copy, clock or Clock())


async def complaints(folder: Path, log: Log, *heads: AuditHead | None) -> list[str]:
    """Shows heads to a new watch; returns the problems that it logs."""
    new = watch(folder, log)
    with capture_logs() as lines:
        for head in heads:
            await new.look(head)
    assert {line["event"] for line in lines} <= {"audit.contradicted"}
    return [line["problem"].removeprefix("the coordinator's audit log ") for line in lines]


async def test_a_log_that_grows_is_followed_over_restarts(tmp_path: Path) -> None:
    log = Log(9)
    assert await complaints(tmp_path, log, None, log.head(0), log.head(2), log.head(2), log.head(3)) == []
    assert await complaints(tmp_path, log, log.head(3), log.head(9)) == []
    assert log.calls == [(1, 1), (2, 1)], "the entry that was the head is looked at again"
    seen = read_heads(tmp_path)
    assert (seen.sequence, seen.sha256) == (9, log.entries[8].sha256)
    assert list(seen.heads) == ["2", "3", "9"]
    assert VERIFIER.has_signed_audit_head(seen.sequence, seen.sha256, bytes.fromhex(seen.signature)), "evidence"


async def test_a_log_that_goes_back_is_reported_once_and_the_newest_head_is_kept(tmp_path: Path) -> None:
    log = Log(9)
    assert await complaints(tmp_path, log, log.head(9), log.head(5), log.head(5)) == [
        "goes back from entry 9 to entry 5"
    ]
    assert await complaints(tmp_path, log, log.head(5)) == [], "already reported before the restart"
    assert await complaints(tmp_path, log, log.head(0)) == ["goes back from entry 9 to entry 0"]
    seen = read_heads(tmp_path)
    assert seen.sequence == 9
    assert seen.complaint is not None
    assert seen.complaint.sequence == 0
    assert await complaints(tmp_path, log, log.head(9)) == []


async def test_a_partner_that_moves_the_file_away_has_agreed_to_another_log(tmp_path: Path) -> None:
    log, restored = Log(9), Log(4, "restored")
    watch = AuditWatch(tmp_path, log.fetch, VERIFIER)
    await watch.look(log.head())
    await watch.look(restored.head())
    assert read_heads(tmp_path).complaint is not None
    (tmp_path / FILE).unlink()
    with capture_logs() as logs:
        await watch.look(restored.head())
    seen = read_heads(tmp_path)
    assert (logs, seen.sequence, seen.complaint) == ([], 4, None)


async def test_another_entry_in_the_place_of_the_head_is_reported(tmp_path: Path) -> None:
    log, other = Log(5), Log(5, "rewritten")
    assert await complaints(tmp_path, log, log.head(5), other.head(5)) == ["has another entry 5 than before"]


async def test_a_rewritten_log_that_has_grown_is_reported(tmp_path: Path) -> None:
    """Its head is newer and well signed; but the entry that was the head before has another hash."""
    log = Log(5)
    assert await complaints(tmp_path, log, log.head(5)) == []
    rewritten = Log(8, "rewritten", log.entries[:3])
    assert await complaints(tmp_path, rewritten, rewritten.head(8)) == ["has another entry 5 than before"]
    assert read_heads(tmp_path).sequence == 5
    gone = Log(8)
    gone.entries = gone.entries[:2]
    head = Log(8).head(8)
    assert await complaints(tmp_path, gone, head) == ["has another entry 5 than before"], "the entry is not shown"


async def test_a_head_that_is_not_signed_is_reported_and_not_kept(tmp_path: Path) -> None:
    log = Log(5)
    unsigned = replace(log.head(5), signature=b"")
    foreign = replace(log.head(5), signature=RecordSigner("fed", new_key()).of_audit_head(5, log.head(5).sha256))
    problem = "is not signed with the federation's record key"
    assert await complaints(tmp_path, log, unsigned, log.head(3), foreign) == [problem]
    assert read_heads(tmp_path).sequence == 3


async def test_without_a_record_key_the_log_is_watched_as_well(tmp_path: Path) -> None:
    log = Log(5)
    plain = AuditWatch(tmp_path, log.fetch)
    await plain.look(replace(log.head(5), signature=b""))
    with capture_logs() as lines:
        await plain.look(replace(log.head(2), signature=b""))
    assert [line["event"] for line in lines] == ["audit.contradicted"]


async def test_the_log_is_looked_at_once_a_minute_at_most(tmp_path: Path) -> None:
    log, clock = Log(9), Clock()
    new = watch(tmp_path, log, lambda: clock.now_s)
    for number in (1, 2, 3):
        await new.look(log.head(number))
    assert (log.calls, read_heads(tmp_path).sequence) == ([], 1)
    with capture_logs() as lines:
        await new.look(log.head(2))
    assert [line["problem"][-32:] for line in lines] == ["goes back from entry 3 to entry 2"[-32:]]
    clock.now_s += CHECK_EVERY_S
    await new.look(log.head(3))
    assert (log.calls, read_heads(tmp_path).sequence) == ([(0, 1)], 3)


@pytest.mark.parametrize(
    ("error", "first"),
    [
        (
            RoleForbids(name="a", role="client", rpc="ListAuditEvents", allowed="admin"),
            ["does not show this client entry 2"],
        ),
        (Unreachable(address="x", problem="y"), []),
    ],
)
async def test_a_head_that_cannot_be_checked_is_not_stored_and_the_log_is_still_watched(
    tmp_path: Path, error: PluralError, first: list[str]
) -> None:
    log = Log(5)
    log.error = error
    back = "goes back from entry 5 to entry 3"
    assert await complaints(tmp_path, log, log.head(2), log.head(5), log.head(3)) == [*first, back]
    assert read_heads(tmp_path).sequence == 2


async def test_a_check_that_fails_for_an_hour_is_reported_once_and_one_that_succeeds_again_ends_the_hour(
    tmp_path: Path,
) -> None:
    log, clock = Log(9), Clock()
    new = watch(tmp_path, log, lambda: clock.now_s)
    await new.look(log.head(2))
    error = Unreachable(address="x", problem="y")
    steps: list[tuple[float, int, PluralError | None, int]] = [  # seconds, head, error of the check, complaints
        (CHECK_EVERY_S, 3, error, 0),
        (CHECK_FAILS_S, 4, None, 0),
        (CHECK_EVERY_S, 5, error, 0),
        (CHECK_FAILS_S, 5, error, 0),
        (1.0, 5, error, 1),
        (1.0, 5, error, 0),
    ]
    for after_s, number, log.error, expected in steps:
        clock.now_s += after_s
        with capture_logs() as lines:
            await new.look(log.head(number))
        assert [line["problem"][-16:] for line in lines] == ["entry 4 for long"] * expected
    assert read_heads(tmp_path).sequence == 4


async def test_a_log_that_is_not_shown_any_more_is_reported_once(tmp_path: Path) -> None:
    log = Log(2)
    assert await complaints(tmp_path, log, None) == []
    assert await complaints(tmp_path, log, log.head(2), None, None) == ["is not shown any more"]
    assert await complaints(tmp_path, log, None) == [], "already reported before the restart"
    assert read_heads(tmp_path).sequence == 2


async def test_heads_are_copied_to_the_place_of_the_partners_choice(tmp_path: Path) -> None:
    log = Log(5)
    new = watch(tmp_path, log, copy=HistoryCopy(tmp_path / "copy.jsonl"))
    await new.look(log.head(2))
    await new.look(log.head(5))
    lines = [json.loads(line) for line in (tmp_path / "copy.jsonl").read_text().splitlines()]
    assert [(line["audit_sequence"], line["audit_sha256"]) for line in lines] == [
        (number, log.entries[number - 1].sha256) for number in (2, 5)
    ]


async def test_a_disk_that_fails_is_reported_and_the_client_goes_on(tmp_path: Path) -> None:
    log = Log(5)
    new = watch(tmp_path / "missing", log)
    with capture_logs() as lines:
        await new.look(log.head(4))
        await new.look(log.head(3))
    events = [line["event"] for line in lines]
    assert events == ["audit.not_kept", "audit.contradicted", "audit.not_kept"]


@pytest.mark.parametrize(
    "content",
    [
        *(
            "{",
            "[]",
            "5",
            "{}",
            '{"complaint": {}}',
            '{"complaint": null, "x": 1}',
            '{"complaint": null, "sequence": "x"}',
        ),
        *(
            '{"complaint": null, "heads": []}',
            '{"complaint": null, "heads": {"x": "a"}}',
            '{"complaint": null, "sha256": 5}',
        ),
    ],
)
def test_a_damaged_file_is_named_with_what_its_owner_can_do(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(InvalidConfig, match=rf"{FILE}(.|\n)*it is damaged: (.|\n)*move it away"):
        read_heads(tmp_path)


# Reading the whole log


async def test_the_whole_log_is_read_page_by_page_and_its_chain_is_checked(tmp_path: Path) -> None:
    log = Log(9)
    await watch(tmp_path, log).look(log.head(4))
    log.calls.clear()
    entries, is_whole = await verified_log(tmp_path, log.fetch, 4, 100)
    assert ([one.entry.sequence for one in entries], is_whole) == (list(range(1, 10)), True)
    assert log.calls == [(0, 4), (4, 4), (8, 4)]
    entries, is_whole = await verified_log(tmp_path, log.fetch, 4, 2)
    assert (len(entries), is_whole) == (8, False)


@pytest.mark.parametrize("place", [1, 2, 3, 4, 5])
async def test_each_change_of_the_log_is_noticed(tmp_path: Path, place: int) -> None:
    """A changed entry that is shown has another hash, and one that is withheld breaks the chain or the kept head."""
    log = Log(5)
    for number in range(1, 6):
        await watch(tmp_path, log).look(log.head(number))
    log.entries[place - 1] = replace(log.entries[place - 1], object="runs/other")
    with pytest.raises(AuditBroken):
        await verified_log(tmp_path, log.fetch, 50, 10)
    rewritten = Log(6, "rewritten", Log(5).entries[: place - 1])
    with pytest.raises(AuditBroken, match="seen before"):
        await verified_log(tmp_path, rewritten.fetch, 50, 10)
    shorter = Log(place - 1)
    with pytest.raises(AuditBroken, match="ends with entry"):
        await verified_log(tmp_path, shorter.fetch, 50, 10)


def problems_in(lines: Sequence[Any]) -> list[str]:
    return [line["problem"].removeprefix("the coordinator's audit log ") for line in lines]


async def test_a_log_that_is_not_shown_while_it_grows_is_reported_once_an_hour(tmp_path: Path) -> None:
    log, clock = Log(400), Clock()
    new = watch(tmp_path, log, lambda: clock.now_s)
    await new.look(log.head(2))
    log.error = RoleForbids(name="a", role="client", rpc="ListAuditEvents", allowed="admin")
    clock.now_s += CHECK_EVERY_S
    with capture_logs() as lines:
        for number in range(3, 363):  # a new head each 20 s: two hours
            await new.look(log.head(number))
            clock.now_s += 20
    assert problems_in(lines) == ["does not show this client entry 2"] * 2
    assert len(log.calls) == 120, "it asks once a minute"


async def test_each_kind_of_contradiction_is_reported_once_and_again_after_an_hour(tmp_path: Path) -> None:
    log, clock = Log(9), Clock()
    new = watch(tmp_path, log, lambda: clock.now_s)
    await new.look(log.head(9))
    unsigned = replace(log.head(9), sequence=10)
    with capture_logs() as lines:
        for number in range(100):  # two kinds in turn, and another entry each time
            await new.look(log.head(number % 8 + 1))
            await new.look(unsigned)
            await new.look(None)
    kinds = [
        "goes back from entry 9 to entry 1",
        "is not signed with the federation's record key",
        "is not shown any more",
    ]
    assert problems_in(lines) == kinds
    clock.now_s += COMPLAIN_EVERY_S - 1
    with capture_logs() as lines:
        await new.look(log.head(2))
    assert lines == []
    clock.now_s += 1
    with capture_logs() as lines:
        await new.look(log.head(2))
    assert problems_in(lines) == ["goes back from entry 9 to entry 2"]
