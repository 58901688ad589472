"""Converts the messages of private rounds to protobuf and back.

The readers are as strict as the dataclasses: sizes, bounds and orders are checked when one is made. Signatures are checked
by whoever knows the round. Every reader raises InvalidArgument, which names the field.
"""

from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.private_rounds.field_checks import check_name, check_number, check_signature, check_size
from pluralllm.common.private_rounds.messages import (
    Box,
    Complaint,
    Confirmation,
    Keys,
    Reveal,
    RoundMember,
    Share,
    Shares,
    UpdateStatement,
)
from pluralllm.common.private_rounds.round_view import DealtBox, MemberComplaint, MemberConfirmation, RoundView
from pluralllm.common.private_rounds.statements import CELL, HASH_BYTES, RoundTerms
from pluralllm.v1 import federation_pb2 as pb

StepBody = Keys | Shares | Complaint | Confirmation | Reveal
# Task.phase, and with it the message that a member sends.
KEYS_PHASE, SHARES_PHASE, UPDATE_PHASE, CONFIRMATION_PHASE, REVEAL_PHASE = 1, 2, 3, 4, 5
PHASE_OF: dict[type[StepBody], int] = {
    Keys: KEYS_PHASE,
    Shares: SHARES_PHASE,
    Complaint: UPDATE_PHASE,
    Confirmation: CONFIRMATION_PHASE,
    Reveal: REVEAL_PHASE,
}


def step_request(task: str, terms_sha256: bytes, body: StepBody) -> pb.PutRoundStepRequest:
    """Returns the request that sends a member's message. task: name of its task. terms_sha256: hash of the round's terms."""
    request = pb.PutRoundStepRequest(task=task, terms_sha256=terms_sha256)
    match body:
        case Keys():
            request.keys.CopyFrom(_keys_message(body))
        case Shares():
            request.shares.boxes.extend(_box_message(box) for box in body.boxes)
        case Complaint():
            request.complaint.CopyFrom(_complaint_message(body))
        case Confirmation():
            request.confirmation.CopyFrom(pb.Confirmation(sum_sha256=body.sum_sha256, signature=body.signature))
        case Reveal():
            shares = [pb.Share(index=share.index, value=share.value) for share in body.shares]
            request.reveal.CopyFrom(pb.Reveal(sum_sha256=body.sum_sha256, shares=shares, signature=body.signature))
    return request


def step_body(request: pb.PutRoundStepRequest) -> StepBody:
    """Returns the member's message in a request. Raises InvalidArgument."""
    check_size("terms_sha256", request.terms_sha256, HASH_BYTES)
    match request.WhichOneof("body"):
        case "keys":
            return _keys(request.keys)
        case "shares":
            return Shares(tuple(_box(box) for box in request.shares.boxes))
        case "complaint":
            return _complaint(request.complaint)
        case "confirmation":
            return Confirmation(request.confirmation.sum_sha256, request.confirmation.signature)
        case "reveal":
            shares = tuple(Share(share.index, share.value) for share in request.reveal.shares)
            return Reveal(request.reveal.sum_sha256, shares, request.reveal.signature)
        case _:
            raise InvalidArgument(field="body", problem="is missing")


def view_message(phase: int, view: RoundView) -> pb.GetRoundStepResponse:
    """Returns the answer that shows the round to a member. phase: the step that the round is in, as in Task.phase."""
    terms = view.terms
    return pb.GetRoundStepResponse(
        phase=phase,
        terms=pb.RoundTerms(
            federation=terms.federation,
            run=terms.run,
            round=terms.round,
            spec_sha256=terms.spec_sha256,
            base_version=terms.base_version,
            base_digest=terms.base_digest,
            base_record_sha256=terms.base_record_sha256,
            roster_head=terms.roster_head,
            places=terms.places,
            colluders=terms.colluders,
        ),
        members=[
            pb.RoundMember(name=one.name, peer_key_der=one.peer_key_der, keys=_keys_message(one.keys))
            for one in view.members
        ],
        dealers=view.dealers,
        boxes=[pb.DealtBox(dealer=one.dealer, box=_box_message(one.box)) for one in view.boxes],
        complaints=[
            pb.MemberComplaint(name=one.name, complaint=_complaint_message(one.complaint)) for one in view.complaints
        ],
        updates=[pb.SummedUpdate(name=one.name, digest=one.digest, statement=one.signature) for one in view.updates],
        confirmations=[pb.MemberConfirmation(name=one.name, signature=one.signature) for one in view.confirmations],
    )


def view_of(answer: pb.GetRoundStepResponse) -> RoundView:
    """Returns the round as the coordinator shows it. Raises InvalidArgument for a message that cannot be one of a round."""
    for field in ("members", "dealers", "boxes", "complaints", "updates", "confirmations"):
        check_number(field, len(getattr(answer, field)), 0, CELL)
    for name in (
        *answer.dealers,
        *(one.dealer for one in answer.boxes),
        *(one.name for one in answer.complaints),
        *(one.name for one in answer.confirmations),
    ):
        check_name("name", name)
    for confirmation in answer.confirmations:
        check_signature(confirmation.signature)
    return RoundView(
        terms=_terms(answer.terms),
        members=tuple(RoundMember(one.name, one.peer_key_der, _keys(one.keys)) for one in answer.members),
        dealers=tuple(answer.dealers),
        boxes=tuple(DealtBox(one.dealer, _box(one.box)) for one in answer.boxes),
        complaints=tuple(MemberComplaint(one.name, _complaint(one.complaint)) for one in answer.complaints),
        updates=tuple(UpdateStatement(one.name, one.digest, one.statement) for one in answer.updates),
        confirmations=tuple(MemberConfirmation(one.name, one.signature) for one in answer.confirmations),
    )


def _terms(message: pb.RoundTerms) -> RoundTerms:
    for field in ("spec_sha256", "base_digest", "base_record_sha256"):
        check_size(field, getattr(message, field), HASH_BYTES)
    check_size("roster_head", message.roster_head, 0, HASH_BYTES)
    for field in ("round", "base_version", "places", "colluders"):
        check_number(field, getattr(message, field), 0, 2**31 - 1)
    return RoundTerms(
        federation=message.federation,
        run=message.run,
        round=message.round,
        spec_sha256=message.spec_sha256,
        base_version=message.base_version,
        base_digest=message.base_digest,
        base_record_sha256=message.base_record_sha256,
        roster_head=message.roster_head,
        places=message.places,
        colluders=message.colluders,
    )


def _keys_message(keys: Keys) -> pb.RoundKeys:
    return pb.RoundKeys(
        mask_public=keys.mask_public,
        box_public=keys.box_public,
        commitment=keys.commitment,
        checked=keys.checked,
        signature=keys.signature,
        score_among=keys.score_among,
    )


def _keys(message: pb.RoundKeys) -> Keys:
    public = message.mask_public, message.box_public
    return Keys(*public, message.commitment, message.checked, message.signature, message.score_among)


def _box_message(box: Box) -> pb.Box:
    return pb.Box(
        index=box.index,
        share_box=box.share_box,
        pair_box=box.pair_box,
        self_commitment=box.self_commitment,
        mask_commitment=box.mask_commitment,
        pair_commitment=box.pair_commitment,
        least=box.least,
        signature=box.signature,
    )


def _box(message: pb.Box) -> Box:
    return Box(
        index=message.index,
        share_box=message.share_box,
        pair_box=message.pair_box,
        self_commitment=message.self_commitment,
        mask_commitment=message.mask_commitment,
        pair_commitment=message.pair_commitment,
        least=message.least,
        signature=message.signature,
    )


def _complaint_message(complaint: Complaint) -> pb.Complaint:
    return pb.Complaint(dealer=complaint.dealer, box_sha256=complaint.box_sha256, signature=complaint.signature)


def _complaint(message: pb.Complaint) -> Complaint:
    return Complaint(message.dealer, message.box_sha256, message.signature)
