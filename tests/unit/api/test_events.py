"""The events of a run, as a program reads them."""

import datetime
from typing import Any

import pytest

from pluralllm.api.events import (
    ClientLost,
    Event,
    ModelPublished,
    RunChanged,
    ScoreArrived,
    UpdateArrived,
    UpdateRefused,
    event_of,
)

TIME = datetime.datetime(2026, 11, 30, 9, 0, 1, 250_000, tzinfo=datetime.UTC)
SCORE = {"group": "Kenya", "client": "ann", "version": 2.0, "alignment_score": 0.75, "context_gain": None}


def event(kind: str, **facts: Any) -> Event:
    return event_of("r", {"sequence": 7, "time": "2026-11-30T09:00:01.250Z", "kind": kind, "facts": facts})


def test_each_kind_has_a_class_with_its_facts() -> None:
    arrived = event("UpdateArrived", round=3.0, receipt={"client": "ann", "examples": 40.0})
    assert isinstance(arrived, UpdateArrived)
    assert (arrived.run, arrived.sequence, arrived.time, arrived.kind) == ("r", 7, TIME, "UpdateArrived")
    assert (arrived.round, arrived.client, arrived.examples) == (3, "ann", 40)
    refused = event("UpdateRefused", round=1.0, client="ann", reason="NOT_FINITE", message="NaN")
    assert isinstance(refused, UpdateRefused)
    assert (refused.round, refused.client, refused.reason, refused.message) == (1, "ann", "NOT_FINITE", "NaN")
    lost = event("PlaceLost", client="bob", reason="silent", permanent=False)
    assert isinstance(lost, ClientLost)
    assert (lost.client, lost.reason) == ("bob", "silent")
    score = event("EvaluationArrived", score=SCORE)
    assert isinstance(score, ScoreArrived)
    assert (score.group, score.client, score.version) == ("Kenya", "ann", 2)
    assert (score.alignment_score, score.context_gain) == (0.75, None)
    published = event("ModelAveraged", round=4.0, digest="d")
    assert isinstance(published, ModelPublished)
    assert published.round == 4


@pytest.mark.parametrize(
    "kind", ["RunStarted", "RunPaused", "RunResumed", "RunCancelled", "RunArchived", "RunUnarchived"]
)
def test_a_run_that_changes_is_one_class_whose_kind_says_how(kind: str) -> None:
    changed = event(kind)
    assert isinstance(changed, RunChanged)
    assert changed.kind == kind


def test_an_event_of_another_kind_or_of_another_release_is_a_plain_event() -> None:
    for plain in (event("ClientsJoined", clients=["ann"]), event("UpdateArrived", round=3.0), event("ModelAveraged")):
        assert type(plain) is Event
    assert event("ClientsJoined", clients=["ann"]).facts == {"clients": ["ann"]}
    assert type(event("EvaluationArrived", score="0.7")) is Event
