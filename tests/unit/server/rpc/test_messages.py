"""Runs and their events as readers get them: other members read neither the failures nor the measured numbers of a client."""

import dataclasses

import pytest
from google.protobuf import json_format
from support.coordinator_harness import small_spec

from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.names import ModelName
from pluralllm.common.words.noise import NoiseStatement
from pluralllm.common.words.reward_weights import RewardOptions
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.members.access import Principal
from pluralllm.server.rounds import events as ev
from pluralllm.server.rpc.messages import event_message, run_message, updates_read
from pluralllm.server.runs.live_run import LiveRun, Progress, first_state
from pluralllm.server.runs.overview import Participant, ParticipantState
from pluralllm.server.runs.status import RunStatus
from pluralllm.server.storage.store import EventRecord, RunRecord
from pluralllm.v1 import resources_pb2 as pb

ANN = ClientId("ann")
RECEIPT = ev.Receipt(ANN, Digest("d"), 10, distance=0.25, norm=3.5)
EVENTS: tuple[ev.Event, ...] = (
    ev.UpdateArrived(1.0, RoundNumber(1), ModelVersion(0), RECEIPT),
    ev.PlaceLost(1.0, ANN, "its disk is full", permanent=False),
    ev.UpdateRefused(1.0, RoundNumber(1), ANN, "WRONG_LAYOUT", "its size is 7"),
    ev.RunCancelled(1.0, "enough of it"),
)


def told(name: str, role: MemberRole) -> str:
    messages = [
        event_message(
            EventRecord(number, 1.0, ev.event_kind(event), ev.event_to_facts(event)),
            Principal(ClientId(name), role),
        )
        for number, event in enumerate(EVENTS)
    ]
    return " ".join(json_format.MessageToJson(message.facts) for message in messages)


@pytest.mark.parametrize(
    ("name", "role", "hidden"),
    [
        ("admin", MemberRole.ADMIN, set()),
        ("ann", MemberRole.CLIENT, {"0.25", "3.5"}),
        ("ben", MemberRole.CLIENT, {"0.25", "3.5", "its disk is full", "WRONG_LAYOUT", "its size is 7"}),
        ("olga", MemberRole.OBSERVER, {"0.25", "3.5", "its disk is full", "WRONG_LAYOUT", "its size is 7"}),
    ],
)
def test_only_an_administrator_reads_measured_numbers_and_the_reasons_of_others(
    name: str, role: MemberRole, hidden: set[str]
) -> None:
    text = told(name, role)
    secrets = {"0.25", "3.5", "its disk is full", "WRONG_LAYOUT", "its size is 7"}
    assert {secret for secret in secrets if secret not in text} == hidden
    assert "enough of it" in text
    assert text.count("ann") == 3


def refusing_run() -> LiveRun:
    """Returns a run that has refused an update of ann and one of ben."""
    spec = small_spec()
    record = RunRecord(RunId("r"), spec.canonical_json(), spec.sha256(), 0.0)
    first = VersionRecord(record.id, ModelVersion(0), RoundNumber(0), Digest("d"), spec.sha256(), "", (), created_s=0.0)
    refusals = (
        ev.UpdateRefused(1.0, RoundNumber(1), ANN, "WRONG_LAYOUT", "its size is 7"),
        ev.UpdateRefused(1.0, RoundNumber(1), ClientId("ben"), "TOO_LONG", "its norm is 9"),
    )
    state = dataclasses.replace(first_state(record, spec, first), refusals=refusals)
    return LiveRun(record, spec, layout_for(spec), first, Progress(state, first))


@pytest.mark.parametrize(
    ("name", "role", "reasons", "refusals"),
    [
        (
            *("admin", MemberRole.ADMIN, ["its disk is full", "2 updates refused", "silent for 9 s"]),
            ["WRONG_LAYOUT", "TOO_LONG"],
        ),
        ("ann", MemberRole.CLIENT, ["its disk is full", "", "silent for 9 s"], ["WRONG_LAYOUT"]),
        ("ben", MemberRole.CLIENT, ["", "2 updates refused", "silent for 9 s"], ["TOO_LONG"]),
        ("olga", MemberRole.OBSERVER, ["", "", "silent for 9 s"], []),
    ],
)
def test_a_run_shows_the_failures_and_refusals_of_a_client_to_itself_and_to_administrators(
    name: str, role: MemberRole, reasons: list[str], refusals: list[str]
) -> None:
    def person(client: str, reason: str, observed: str = "") -> Participant:
        state = ParticipantState.WORKING
        noise = NoiseStatement(noised=False) if client == "ben" else None
        return Participant(ClientId(client), "g", GroupRole.TRAIN, state, reason, observed, 1.0, 0.0, "", None, noise)

    late = person("cem", "silent for 9 s", "silent for 9 s")  # the coordinator itself has noticed it
    people = (person("ann", "its disk is full"), person("ben", "2 updates refused"), late)
    status = RunStatus(at_s=1.0, participants=people, next="", trouble="", received_bytes=0, sent_bytes=0)
    message = run_message(refusing_run(), status, (), (), Principal(ClientId(name), role))
    assert [shown.reason for shown in message.participants] == reasons
    assert [shown.HasField("noise") for shown in message.participants] == [False, True, False]
    assert [refusal.reason for refusal in message.refusals] == refusals
    assert ("its size is 7" in str(message)) == ("WRONG_LAYOUT" in refusals)


def test_a_run_says_what_the_coordinator_reads_of_its_updates() -> None:
    plain = small_spec()
    private = small_spec(
        round={"min_clients": 4, "target_clients": 5}, aggregation={"max_examples": 9}, private_rounds={"colluders": 1}
    )
    model = ModelName(RunId("r"), ModelVersion(3))
    rewards = private.for_rewards(model, Digest("a1" * 32), RewardOptions(), "here")
    read = [updates_read(spec) for spec in (plain, private, rewards)]
    assert read == [pb.UPDATES_READ_SINGLE, pb.UPDATES_READ_SUMS, pb.UPDATES_READ_UNSPECIFIED]
    status = RunStatus(1.0, participants=(), next="", trouble="", received_bytes=0, sent_bytes=0, blocked="so")
    message = run_message(refusing_run(), status, (), (), Principal(ANN, MemberRole.CLIENT))
    assert (message.updates_read, message.blocked) == (pb.UPDATES_READ_SINGLE, "so")
