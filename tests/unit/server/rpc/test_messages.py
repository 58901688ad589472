"""The events of a run as its readers get them: an administrator reads all, others nothing that a client measured."""

import pytest
from google.protobuf import json_format

from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber
from pluralllm.common.words.roles import MemberRole
from pluralllm.server.members.access import Principal
from pluralllm.server.rounds import events as ev
from pluralllm.server.rpc.messages import event_message
from pluralllm.server.storage.store import EventRecord

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
