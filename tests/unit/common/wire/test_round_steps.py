"""Messages of private rounds over the wire: they arrive as they were sent, and nothing else is read."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from support.private_members import TERMS, dealt_round, digest, person

from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.private_rounds import messages as m
from pluralllm.common.private_rounds.round_view import DealtBox, MemberComplaint, MemberConfirmation, RoundView
from pluralllm.common.wire.round_steps import PHASE_OF, StepBody, step_body, step_request, view_message, view_of
from pluralllm.v1 import federation_pb2 as pb

ANN = person("ann")
SHARES = dealt_round(3, 2).shares["ann"]
R2, R3 = digest("R2"), digest("R3")
COMPLAINT = m.Complaint("bob", digest("box")).signed(ANN.key, R2, "ann")
CONFIRMATION = m.Confirmation(R3).signed(ANN.key)
BODIES: list[StepBody] = [
    replace(ANN.keys, score_among=5),
    SHARES,
    COMPLAINT,
    CONFIRMATION,
    m.Reveal.of(R3, {2: bytes(33), 1: b"\1" + bytes(32)}).signed(ANN.key),
]
VIEW = RoundView(
    TERMS,
    members=(ANN.member, person("bob").member),
    dealers=("ann", "bob"),
    boxes=(DealtBox("bob", SHARES.boxes[1]),),
    complaints=(MemberComplaint("ann", COMPLAINT),),
    updates=(m.UpdateStatement("ann", digest("file")).signed(ANN.key, R2),),
    confirmations=(MemberConfirmation("ann", CONFIRMATION.signature),),
)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: type(body).__name__)
def test_a_message_arrives_as_it_was_sent(body: StepBody) -> None:
    request = step_request("runs/r/rounds/1/tasks/train-ann", TERMS.sha256, body)
    again = pb.PutRoundStepRequest.FromString(request.SerializeToString())
    assert step_body(again) == body
    assert again.terms_sha256 == TERMS.sha256


def test_each_message_belongs_to_a_phase() -> None:
    assert [PHASE_OF[type(body)] for body in BODIES] == [1, 2, 3, 4, 5]


def test_a_view_arrives_as_it_was_shown() -> None:
    answer = pb.GetRoundStepResponse.FromString(view_message(5, VIEW).SerializeToString())
    assert answer.phase == 5
    assert view_of(answer) == VIEW


def _change(request: pb.PutRoundStepRequest, what: str) -> None:
    match what:
        case "no body":
            request.ClearField("body")
        case "short terms":
            request.terms_sha256 = request.terms_sha256[1:]
        case "long key":
            request.keys.mask_public += b"\0"


@pytest.mark.parametrize("what", ["no body", "short terms", "long key"])
def test_a_request_that_cannot_be_one_is_refused(what: str) -> None:
    request = step_request("t", TERMS.sha256, ANN.keys)
    _change(request, what)
    with pytest.raises(InvalidArgument):
        step_body(request)


def _too_many_members(answer: pb.GetRoundStepResponse) -> None:
    answer.members.extend([answer.members[0]] * 127)


def _no_name(answer: pb.GetRoundStepResponse) -> None:
    answer.dealers[0] = "../ann"


def _long_signature(answer: pb.GetRoundStepResponse) -> None:
    answer.confirmations[0].signature = bytes(73)


def _short_head(answer: pb.GetRoundStepResponse) -> None:
    answer.terms.roster_head = bytes(31)


def _no_base(answer: pb.GetRoundStepResponse) -> None:
    answer.terms.base_digest = b""


def _negative_round(answer: pb.GetRoundStepResponse) -> None:
    answer.terms.round = -1


def _dealer_without_name(answer: pb.GetRoundStepResponse) -> None:
    answer.boxes[0].dealer = ""


@pytest.mark.parametrize(
    "change",
    [
        _too_many_members,
        _no_name,
        _long_signature,
        _short_head,
        _no_base,
        _negative_round,
        _dealer_without_name,
    ],
)
def test_a_view_that_cannot_be_one_is_refused(change: Callable[[pb.GetRoundStepResponse], None]) -> None:
    answer = view_message(5, VIEW)
    change(answer)
    with pytest.raises(InvalidArgument):
        view_of(answer)
