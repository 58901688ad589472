"""Messages of a private round: one canonical text, strict sizes, and a signature for this round, reader and place only."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from support.private_members import TERMS, dealt_round, digest, member_key, person

from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.private_rounds import messages as m
from pluralllm.common.private_rounds.peer_keys import public_der
from pluralllm.common.private_rounds.shamir import PRIME

ANN, BOB = person("ann"), person("bob")
SPKI = public_der(ANN.key)
R1, R2, R3 = digest("R1"), digest("R2"), digest("R3")
DEALT = dealt_round(3, 2)
SHARES = DEALT.shares["ann"]
EXAMPLES: list[m.Body] = [
    ANN.keys,
    ANN.member,
    SHARES,
    SHARES.boxes[1],
    SHARES.boxes[1].line,
    m.Complaint("bob", digest("box")).signed(ANN.key, R2, "ann"),
    m.UpdateStatement("ann", digest("file")).signed(ANN.key, R2),
    m.Confirmation(R3).signed(ANN.key),
    m.Reveal.of(R3, {2: bytes(33), 1: b"\1" + bytes(32)}).signed(ANN.key),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_has_one_text_and_is_read_from_no_other(message: m.Body) -> None:
    body = message.to_json()
    assert type(message).from_json(body) == message
    assert len(body) <= m.MAX_BODY_BYTES
    data = json.loads(body)
    name = sorted(data)[0]
    wrong: list[Any] = [
        {**data, "extra": 1},
        {key: value for key, value in data.items() if key != name},
        {**data, name: None},
        {**data, name: True if data[name] is not True else 1},
        {**data, name: [[]]},
        [data],
        7,
    ]
    bodies = [json.dumps(value, sort_keys=True, separators=(",", ":")).encode() for value in wrong]
    bodies += [b"", b"{", b"[" * 100_000, b"1" * 5000, body + b"\n", json.dumps(data, indent=1).encode(), b"\xff"]
    bodies += [body.replace(b'{"', b'{"x":1,"', 1), body[:-1] + b',"' + name.encode() + b'":' + b"1}"]
    for other in bodies:
        with pytest.raises(InvalidArgument):
            type(message).from_json(other)
    with pytest.raises(InvalidArgument, match="at most"):
        type(message).from_json(bytes(m.MAX_BODY_BYTES + 1))


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_bytes_of_another_size_are_refused(message: m.Body) -> None:
    for field in fields(message):  # type: ignore[arg-type]
        value = getattr(message, field.name)
        if isinstance(value, bytes):
            with pytest.raises(InvalidArgument, match=field.name.removesuffix("_der")):
                replace(message, **{field.name: value + bytes(73 - len(value) if field.name == "signature" else 1)})  # type: ignore[type-var]


def test_the_largest_message_of_shares_is_read() -> None:
    boxes = [replace(SHARES.boxes[1], index=index, signature=bytes(72)) for index in range(1, 129)]
    boxes[4] = replace(boxes[4], share_box=b"", pair_box=b"", pair_commitment=b"")
    shares = m.Shares(tuple(boxes))
    assert m.Shares.from_json(shares.to_json()) == shares


def test_keys_are_signed_for_one_round_and_name_with_every_field() -> None:
    keys = ANN.keys
    assert keys.is_signed(SPKI, TERMS.sha256, "ann")
    assert not keys.is_signed(SPKI, TERMS.sha256, "bob")
    assert not keys.is_signed(SPKI, digest("other terms"), "ann")
    changes: list[dict[str, Any]] = [
        {"mask_public": BOB.keys.mask_public},
        {"box_public": BOB.keys.box_public},
        {"commitment": BOB.keys.commitment},
        {"checked": False},
        {"score_among": 4},
    ]
    for change in changes:
        assert not replace(keys, **change).is_signed(SPKI, TERMS.sha256, "ann")
        assert replace(keys, **change).sha256 != keys.sha256
    for demand in (-1, m.MOST_DEMAND + 1):
        with pytest.raises(InvalidArgument, match="score_among"):
            replace(keys, score_among=demand)
    with pytest.raises(InvalidArgument, match="same key"):
        replace(keys, box_public=keys.mask_public)


def test_a_box_is_signed_for_one_dealer_member_and_round_with_every_field() -> None:
    box = SHARES.boxes[1]
    assert box.is_signed(SPKI, DEALT.r1, "ann", "bob")
    for r1, dealer, member in ((R1, "ann", "bob"), (DEALT.r1, "cleo", "bob"), (DEALT.r1, "ann", "cleo")):
        assert not box.is_signed(SPKI, r1, dealer, member)
    other = SHARES.boxes[2]
    for name in ("share_box", "pair_box", "self_commitment", "mask_commitment", "pair_commitment"):
        assert not replace(box, **{name: getattr(other, name)}).is_signed(SPKI, DEALT.r1, "ann", "bob")
    assert not replace(box, least=1).is_signed(SPKI, DEALT.r1, "ann", "bob")
    assert box.line.is_signed(SPKI, DEALT.r1, "ann", "bob")
    assert box.sha256 != replace(box, pair_box=other.pair_box).sha256


def test_boxes_are_one_for_each_member_and_all_signed_by_their_dealer() -> None:
    m.check_shares(SHARES, SPKI, DEALT.r1, "ann", DEALT.names)
    boxes = SHARES.boxes
    for wrong in (boxes[::-1], boxes[:2], (boxes[0], boxes[0], boxes[2]), (replace(boxes[1], index=1), *boxes[1:])):
        with pytest.raises(InvalidArgument, match="boxes"):
            m.Shares(wrong)
    with pytest.raises(InvalidArgument, match="least"):
        m.Shares((*boxes[:2], replace(boxes[2], least=9)))
    with pytest.raises(InvalidArgument, match="for bob is not signed"):
        m.check_shares(
            m.Shares((boxes[0], replace(boxes[1], share_box=boxes[2].share_box), boxes[2])),
            *(SPKI, DEALT.r1, "ann", DEALT.names),
        )
    with pytest.raises(InvalidArgument, match="of this dealer"):
        m.check_shares(SHARES, SPKI, DEALT.r1, "bob", DEALT.names)
    with pytest.raises(InvalidArgument, match="of this dealer"):
        m.check_shares(SHARES, SPKI, DEALT.r1, "ann", (*DEALT.names, "zoe"))


def test_later_statements_hold_for_one_signer_and_one_round() -> None:
    complaint = m.Complaint("bob", digest("box")).signed(ANN.key, R2, "ann")
    assert complaint.is_signed(SPKI, R2, "ann")
    assert not complaint.is_signed(SPKI, R1, "ann")
    assert not complaint.is_signed(SPKI, R2, "cleo")
    assert not replace(complaint, dealer="cleo").is_signed(SPKI, R2, "ann")
    assert not replace(complaint, box_sha256=R1).is_signed(SPKI, R2, "ann")
    update = m.UpdateStatement("ann", digest("file")).signed(ANN.key, R2)
    assert update.is_signed(SPKI, R2)
    assert not update.is_signed(SPKI, R1)  # the same file, for other dealers
    assert not replace(update, digest=R1).is_signed(SPKI, R2)
    assert not replace(update, name="bob").is_signed(SPKI, R2)
    confirmation = m.Confirmation(R3).signed(ANN.key)
    assert confirmation.is_signed(SPKI)
    assert not confirmation.is_signed(public_der(member_key("bob")))
    assert not replace(confirmation, sum_sha256=R2).is_signed(SPKI)
    reveal = m.Reveal.of(R3, {1: bytes(33), 2: bytes(33)}).signed(ANN.key)
    assert reveal.is_signed(SPKI)
    assert not replace(reveal, shares=reveal.shares[:1]).is_signed(SPKI)
    assert not replace(reveal, sum_sha256=R2).is_signed(SPKI)
    assert not m.Confirmation(R3, reveal.signature).is_signed(SPKI)


def test_a_reveal_has_no_place_for_two_shares_of_one_dealer() -> None:
    share = m.Share(1, bytes(33))
    for shares in ((share, share), (m.Share(2, bytes(33)), share), ()):
        with pytest.raises(InvalidArgument, match="shares"):
            m.Reveal(R3, shares)
    with pytest.raises(InvalidArgument, match="prime"):
        m.Share(1, PRIME.to_bytes(33, "big"))
    for index in (0, 129):
        with pytest.raises(InvalidArgument, match="index"):
            m.Share(index, bytes(33))


def test_members_are_sorted_and_no_key_is_there_twice() -> None:
    people = [person(name) for name in ("ann", "bob", "cleo")]
    members = [one.member for one in people]
    assert m.check_members(members) == ("ann", "bob", "cleo")
    twice = replace(members[2], peer_key_der=members[0].peer_key_der)
    same_key = replace(members[2], keys=replace(members[2].keys, mask_public=members[0].keys.mask_public))
    crossed = replace(members[2], keys=replace(members[2].keys, box_public=members[0].keys.mask_public))
    for wrong in (members[:2], members[::-1], [members[0], members[0], members[2]]):
        with pytest.raises(InvalidArgument, match="members"):
            m.check_members(wrong)
    with pytest.raises(InvalidArgument, match="is 129, must be 3 to 128"):
        m.check_members([members[0]] * 129)
    for last in (twice, same_key, crossed):
        with pytest.raises(InvalidArgument, match=r"one peer key|there twice"):
            m.check_members([*members[:2], last])
    with pytest.raises(InvalidArgument, match="name"):
        replace(members[0], name="../ann")
