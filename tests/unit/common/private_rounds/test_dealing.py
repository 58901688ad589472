"""Dealing and opening: what a member gets from honest dealers, and how it names who lies."""

from dataclasses import replace

import pytest
from support.private_members import TERMS, dealt_round, digest, person

from pluralllm.common.errors.private_rounds import BadBox, BadView
from pluralllm.common.private_rounds import dealing
from pluralllm.common.private_rounds.messages import Box
from pluralllm.common.private_rounds.peer_keys import public_der
from pluralllm.common.private_rounds.sealed_boxes import HybridKey, seal
from pluralllm.common.private_rounds.shamir import combine
from pluralllm.common.private_rounds.statements import enc

ROUND = dealt_round(4, 3, least=4)
ANN, BOB = ROUND.people[:2]
SPKI = public_der(ANN.key)
BOX = ROUND.shares["ann"].boxes[1]  # for bob


def held(name: str, dealer: str) -> dealing.HeldShares:
    if name == dealer:
        return ROUND.own[name]
    index = ROUND.names.index(name) + 1
    spki = public_der(ROUND.people[ROUND.names.index(dealer)].key)
    return ROUND.opener(name).opened(dealer, spki, ROUND.shares[dealer].box_of(index), index).held


def test_three_of_four_members_hold_the_secrets_of_every_dealer() -> None:
    for dealer in ROUND.people:
        shares = {ROUND.names.index(name) + 1: held(name, dealer.name) for name in ("ann", "cleo", "dora")}
        assert combine({index: one.own for index, one in shares.items()}) == dealer.secrets.own
        assert combine({index: one.mask for index, one in shares.items()}) == dealer.secrets.mask
        commitments = {box.self_commitment for box in ROUND.shares[dealer.name].boxes}
        assert len(commitments) == 4


def test_a_pair_box_is_opened_by_its_member_and_by_whoever_rebuilds_the_members_mask() -> None:
    half = dealing.pair_key(ANN.secrets.mask, ROUND.r1, "ann", "bob")
    assert ROUND.opener("bob").opened("ann", SPKI, BOX, 2).pair_key == half
    rebuilt = HybridKey.of(BOB.secrets.mask)
    assert dealing.open_pair_box(rebuilt, ROUND.r1, "ann", "bob", BOX.pair_box) == half


def test_a_box_that_the_dealer_did_not_sign_for_this_member_and_round_blames_the_coordinator() -> None:
    opener = ROUND.opener("bob")
    for box, index in (
        (replace(BOX, signature=b""), 2),
        (ROUND.shares["ann"].boxes[2], 2),
        (BOX, 3),
        (ROUND.shares["ann"].boxes[0], 2),
        (replace(BOX, share_box=ROUND.shares["cleo"].boxes[1].share_box), 2),
    ):
        with pytest.raises(BadView, match="ann"):
            opener.opened("ann", SPKI, box, index)
    empty = signed(replace(BOX, share_box=b"", pair_box=b"", pair_commitment=b""))  # the form of a dealer's own box
    with pytest.raises(BadView, match="ann"):
        opener.opened("ann", SPKI, empty, 2)
    with pytest.raises(BadView):
        dealing.BoxOpener(BOB.secrets, digest("another R1"), "bob").opened("ann", SPKI, BOX, 2)


def signed(box: Box) -> Box:
    return box.signed(ANN.key, ROUND.r1, "ann", "bob")


def test_a_signed_box_that_does_not_hold_what_it_commits_to_names_its_dealer() -> None:
    honest = held("bob", "ann")
    too_large = b"\xff" * 33
    share_info, pair_info = (enc(kind, ROUND.r1, "ann", "bob") for kind in ("share box", "pair box"))

    def share_box(own: bytes, mask: bytes) -> bytes:
        return seal(BOB.keys.box_public, share_info, own + mask)

    def committed(kind: str, share: bytes) -> bytes:
        return dealing.share_commitment(ROUND.r1, "ann", "bob", kind, share)

    wrong = [
        replace(BOX, share_box=bytes(1202)),
        replace(BOX, pair_box=bytes(1168)),
        replace(BOX, share_box=ROUND.shares["cleo"].boxes[1].share_box),  # another dealer's, passed on
        replace(BOX, share_box=share_box(honest.mask, honest.own)),
        replace(BOX, self_commitment=digest("other")),
        replace(BOX, mask_commitment=digest("other")),
        replace(BOX, pair_commitment=digest("other")),
        replace(BOX, pair_box=seal(BOB.keys.mask_public, pair_info, digest("another pair key"))),
        replace(BOX, share_box=share_box(too_large, honest.mask), self_commitment=committed("self", too_large)),
        replace(BOX, share_box=share_box(honest.own, too_large), mask_commitment=committed("mask", too_large)),
    ]
    for box in map(signed, wrong):
        with pytest.raises(BadBox) as refused:
            ROUND.opener("bob").opened("ann", SPKI, box, 2)
        assert (refused.value.dealer, refused.value.box_sha256) == ("ann", box.sha256.hex())
    again = signed(replace(BOX, share_box=share_box(honest.own, honest.mask)))
    assert ROUND.opener("bob").opened("ann", SPKI, again, 2).held == honest


def test_a_holder_reveals_one_share_of_each_dealer() -> None:
    shares = {name: held("bob", name) for name in ROUND.names}
    values = dealing.revealed_values(shares, ("ann", "bob", "dora"), frozenset({"ann", "bob"}), ROUND.names)
    assert values == {1: shares["ann"].own, 2: shares["bob"].own, 4: shares["dora"].mask}


def test_secrets_are_fresh_for_each_round_and_never_shown() -> None:
    other = person("ann", replace(TERMS, round=8)).secrets
    for name in ("mask", "own", "box", "training"):
        assert getattr(other, name) != getattr(ANN.secrets, name)
    secrets = {ANN.secrets.mask, ANN.secrets.own, ANN.secrets.box, ANN.secrets.training}
    assert len(secrets) == 4
    opened = ROUND.opener("bob").opened("ann", SPKI, BOX, 2)
    shown = f"{ANN.secrets} {opened} {ROUND.opener('bob')}"
    assert not any(repr(secret) in shown for secret in (*secrets, opened.pair_key, opened.held.own, opened.held.mask))
    with pytest.raises(ValueError, match="32 bytes"):
        dealing.RoundSecrets.of(bytes(16), TERMS.sha256)
