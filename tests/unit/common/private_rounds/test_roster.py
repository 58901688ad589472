"""A roster grows by proper entries only, and its digest says which history somebody has seen."""

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from pluralllm.common.errors.private_rounds import RosterDiverged
from pluralllm.common.private_rounds.roster import FIRST_HEAD, Roster, RosterChange, RosterEntry, parse_digest

A, B = "a" * 64, "b" * 64
ANN = RosterEntry(1, "ann", "S. Korea", A, RosterChange.ADDED)
GONE = replace(ANN, sequence=2, change=RosterChange.REMOVED)


def entry(sequence: int, change: str, name: str = "ann", fingerprint: str = A, group: str = "G") -> RosterEntry:
    return RosterEntry(sequence, name, group, fingerprint, RosterChange(change))


def test_a_head_covers_the_entry_and_the_head_before_it() -> None:
    text = f'{{"change":"added","fingerprint":"{A}","group":"S. Korea","name":"ann","sequence":1}}'
    first = hashlib.sha256(text.encode()).digest()
    assert Roster().head == FIRST_HEAD == b""
    assert Roster().extended([ANN]).head == first
    assert Roster().extended([ANN, GONE]).head == GONE.head_after(first) != GONE.head_after(b"")


@pytest.mark.parametrize("field", ["sequence", "name", "group", "fingerprint", "change"])
def test_every_field_of_an_entry_changes_the_head(field: str) -> None:
    others: dict[str, Any] = {
        "sequence": 2,
        "name": "ben",
        "group": "H",
        "fingerprint": B,
        "change": RosterChange.REPLACED,
    }
    assert replace(ANN, **{field: others[field]}).head_after(b"") != ANN.head_after(b"")


def test_a_roster_in_two_steps_is_the_roster_in_one() -> None:
    entries = [ANN, entry(2, "added", "ben", B), replace(GONE, sequence=3)]
    assert Roster().extended(entries[:1]).extended(entries[1:]) == Roster().extended(entries)


def test_a_member_has_the_key_of_its_newest_entry_and_none_after_its_removal() -> None:
    roster = Roster().extended([ANN])
    assert (roster.sequence, roster.fingerprint_of("ann"), roster.fingerprint_of("ben")) == (1, A, None)
    removed = roster.extended([GONE])
    assert (removed.fingerprint_of("ann"), removed.removal("ann")) == (None, None)
    assert removed.extended([entry(3, "replaced", fingerprint=B)]).fingerprint_of("ann") == B


def test_a_roster_says_which_entry_comes_next() -> None:
    roster = Roster().extended([ANN])
    assert roster.removal("ann") == GONE
    assert roster.next_entry("ben", "G", B) == entry(2, "added", "ben", B)
    removed = roster.extended([GONE])
    assert removed.next_entry("ann", "G", A).change is RosterChange.ADDED  # the same key again
    assert removed.next_entry("ann", "G", B).change is RosterChange.REPLACED


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([entry(2, "added")], "after entry 0 comes entry 2"),
        ([ANN, entry(1, "added", "ben", B)], "after entry 1 comes entry 1"),
        ([entry(1, "added", "Ann")], "no proper name"),
        ([entry(1, "added", group="")], "no proper name"),
        ([entry(1, "added", fingerprint="A" * 64)], "no proper name"),
        ([entry(1, "added", fingerprint="a" * 63)], "no proper name"),
        ([ANN, entry(2, "added", "ben", A)], "gives ben the key of ann"),
        ([ANN, GONE, entry(3, "added", "ben", A)], "gives ben the key of ann"),
        ([ANN, entry(2, "added", fingerprint=B)], "gives ann a second key"),
        ([ANN, entry(2, "replaced", fingerprint=B)], "gives ann a second key"),
        ([entry(1, "removed")], "removes a key that ann does not have"),
        ([ANN, entry(2, "removed", fingerprint=B)], "removes a key that ann does not have"),
        ([ANN, GONE, replace(GONE, sequence=3)], "removes a key that ann does not have"),
        ([ANN, GONE, entry(3, "added", fingerprint=B)], "does not say that ann has another key than before"),
        ([entry(1, "replaced")], "replaces a key that ann did not have"),
        ([ANN, GONE, entry(3, "replaced")], "replaces a key that ann did not have"),
    ],
)
def test_an_entry_that_cannot_follow_is_refused(entries: list[RosterEntry], problem: str) -> None:
    roster = Roster().extended(entries[:-1])
    with pytest.raises(RosterDiverged, match=problem):
        roster.extended(entries[-1:])
    assert roster == Roster().extended(entries[:-1])


def test_a_typed_digest_is_whole_or_refused() -> None:
    typed = " ".join(["01AB"] * 16)
    assert parse_digest(typed) == parse_digest("01ab" * 16) == bytes.fromhex("01ab" * 16)
    for bad in ("", "01ab" * 15, "01ab" * 17, "01ag" * 16, "0x" + "01ab" * 15 + "01"):
        with pytest.raises(ValueError, match="64 hex digits"):
            parse_digest(bad)
