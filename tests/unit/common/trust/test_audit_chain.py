"""The hash chain reveals each entry that was changed, dropped, added or swapped."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluralllm.common.errors.membership import AuditBroken
from pluralllm.common.trust.audit_chain import AuditEntry, check_chain


def chain(length: int) -> list[tuple[AuditEntry, str]]:
    entries: list[tuple[AuditEntry, str]] = []
    previous = ""
    for sequence in range(1, length + 1):
        entry = AuditEntry(sequence, 10**15 + sequence, "ann", "1f", "StartRun", "runs/r", "ACCEPTED", "{}", previous)
        entries.append((entry, entry.sha256))
        previous = entry.sha256
    return entries


def test_an_honest_chain_ends_in_its_head() -> None:
    entries = chain(5)
    assert check_chain(entries) == (5, entries[-1][1])
    assert check_chain(entries[3:], 3, entries[2][1]) == (5, entries[-1][1])
    assert check_chain([]) == (0, "")


@given(st.integers(0, 4), st.sampled_from(["at_us", "actor", "serial", "action", "object", "result", "facts_json"]))
def test_a_changed_field_is_found(at: int, field: str) -> None:
    entries = chain(5)
    entry, stored = entries[at]
    forged: dict[str, Any] = {field: 7 if field == "at_us" else "forged"}
    changed = replace(entry, **forged)
    # The old hash does not fit the entry; with a new hash, the next entry does not fit.
    for sha256 in (stored, changed.sha256):
        entries[at] = (changed, sha256)
        if at < 4 or sha256 == stored:
            with pytest.raises(AuditBroken):
                check_chain(entries)


@given(st.integers(0, 3))
def test_a_missing_or_repeated_entry_is_found(at: int) -> None:
    entries = chain(5)
    for wrong in (entries[:at] + entries[at + 1 :], [*entries[: at + 1], *entries[at:]]):
        with pytest.raises(AuditBroken):
            check_chain(wrong)


def test_another_history_does_not_follow_a_known_head() -> None:
    with pytest.raises(AuditBroken, match="does not follow the entry 3"):
        check_chain(chain(5)[3:], 3, "0" * 64)
