"""The hash of a version record: it covers every fact but the time, and old records keep theirs."""

import dataclasses
import hashlib
from typing import Any

import pytest

from pluralllm.common.trust import version_record
from pluralllm.common.trust.version_record import VersionRecord, record_sha256
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber, RunId

UPDATES = ((ClientId("ann"), Digest("u"), 5), (ClientId("bob"), Digest("v"), 7))
RECORD = VersionRecord(
    RunId("r"), ModelVersion(1), RoundNumber(1), Digest("d1"), Digest("s"), "p", UPDATES, created_s=1.0
)


def test_a_record_without_optional_facts_keeps_its_old_hash() -> None:
    facts = b'[1,1,"d1","s","p",[["ann","u",5],["bob","v",7]]]'
    assert RECORD.record_sha256 == record_sha256(RECORD) == hashlib.sha256(facts).hexdigest()


def test_moments_weights_and_scales_are_hashed_in_this_order_if_there_are_any() -> None:
    full = dataclasses.replace(RECORD, moments=(Digest("m"),), weights=(0.25, 0.75), scales=(1.0, 0.5))
    facts = '[1,1,"d1","s","p",[["ann","u",5],["bob","v",7]],["moments",["m"]],["weights",[0.25,0.75]],["scales",[1.0,0.5]]]'
    assert record_sha256(full) == hashlib.sha256(facts.encode()).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"round": 2},
        {"digest": "d2"},
        {"spec_sha256": "t"},
        {"parent_sha256": "q"},
        {"updates": UPDATES[:1]},
        {"moments": ("m",)},
        {"weights": (0.5, 0.5)},
        {"scales": (1.0, 0.5)},
    ],
)
def test_another_fact_gives_another_hash(change: dict[str, Any]) -> None:
    assert record_sha256(dataclasses.replace(RECORD, **change)) != record_sha256(RECORD)


def test_the_time_and_the_name_of_the_run_are_not_hashed() -> None:
    assert record_sha256(dataclasses.replace(RECORD, created_s=2.0, run=RunId("other"))) == record_sha256(RECORD)


def test_a_record_computes_its_hash_once_and_a_changed_copy_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made = dataclasses.replace(RECORD)
    expected = record_sha256(RECORD)
    assert (made.record_sha256, made) == (expected, RECORD)
    monkeypatch.setattr(version_record, "record_sha256", None)  # a second computation would fail
    assert made.record_sha256 == expected
    monkeypatch.undo()
    assert dataclasses.replace(made, round=RoundNumber(9)).record_sha256 == record_sha256(
        dataclasses.replace(RECORD, round=RoundNumber(9))
    )
    assert "known" not in repr(made)
