"""An observer's page leaves out what only administrators may know; an administrator's page leaves out nothing."""

from dataclasses import replace
from typing import Any

from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.members.access import Principal
from pluralllm.server.observe.page_reader import history_for, row_for, run_for
from pluralllm.server.runs.overview import Participant, ParticipantState

ROOT = Principal(ClientId("root"), MemberRole.ADMIN)
EYE = replace(ROOT, name=ClientId("eye"), role=MemberRole.OBSERVER)
ANN = Participant(
    client=ClientId("ann"),
    group="G",
    role=GroupRole.TRAIN,
    state=ParticipantState.LOST,
    reason="its disk is full",
    observed="it has lost its slot",
    last_seen_s=5.0,
    progress=0.0,
    stage="",
    weight=0.5,
)
RUN: dict[str, Any] = {
    "name": "r",
    "title": "plan",
    "trouble": "a disk fails",
    "refusals": [{"message": "why"}],
    "clients": [{"client": "ann", "reason": "its disk is full", "weight": 0.5}],
}
HISTORY: dict[str, Any] = {
    "groups": ["G"],
    "loss": [[1, 0.2]],
    "lineage": [{"digest": "ab"}],
    "axes": {"loss": {"ticks": [0.2]}, "rounds": 1},
}


def test_an_administrator_sees_everything() -> None:
    assert (row_for(ROOT, RUN), run_for(ROOT, RUN, [ANN]), history_for(ROOT, HISTORY)) == (RUN, RUN, HISTORY)


def test_an_observer_sees_what_the_coordinator_observes_and_not_what_a_client_reports() -> None:
    seen = run_for(EYE, RUN, [ANN])
    assert seen["clients"] == [{"client": "ann", "reason": "it has lost its slot", "weight": 0.5}]
    assert (seen["name"], seen["title"], seen["trouble"], seen["refusals"]) == ("r", "", "", [])
    assert row_for(EYE, RUN)["title"] == ""
    assert run_for(EYE, RUN, [])["clients"][0]["reason"] == ""


def test_an_observer_sees_scores_but_neither_losses_nor_digests_of_models() -> None:
    seen = history_for(EYE, HISTORY)
    assert (seen["groups"], seen["loss"], seen["lineage"], seen["axes"]["rounds"]) == (["G"], [], [], 1)
    assert "0.2" not in str(seen)
