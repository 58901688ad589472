"""The sum of a private round: exactly the plain sum, whoever drops, and a named liar for every lie that can be named."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.private_members import (
    NAMES,
    TERMS,
    Dealt,
    Played,
    dealt_round,
    digest,
    held_shares,
    masked_by,
    member_key,
    numbers,
    played_round,
)

from pluralllm.common.errors.private_rounds import BadView, DealtWrongly, SumImplausible
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.private_rounds import dealing
from pluralllm.common.private_rounds.masks import add_masks, opposite, pair_key_with_sign
from pluralllm.common.private_rounds.messages import Confirmation, Reveal, Shares, UpdateStatement
from pluralllm.common.private_rounds.ring import MemberTail, Ring, SumTail, clipping_of, decoded_mean, quantised
from pluralllm.common.private_rounds.round_sum import (
    FixedRound,
    Unmasking,
    are_revealed,
    check_reveal,
    leftover_streams,
    open_round,
)
from pluralllm.common.private_rounds.sealed_boxes import seal
from pluralllm.common.private_rounds.shamir import split
from pluralllm.common.words.private_rounds import threshold

VALUES = 150


def plain_numbers(names: tuple[str, ...], seed: int = 1) -> dict[str, NDArray[np.uint32]]:
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 2**32, VALUES, dtype=np.uint32) for name in names}


def unmasked(played: Played, shares: dict[str, Shares] | None = None) -> NDArray[np.uint32]:
    opened = open_round(played.fixed, shares or played.dealt.shares, played.reveals)
    streams = Unmasking(leftover_streams(played.fixed, opened))
    cuts = ((0, 64), (64, 101), (101, VALUES))
    return np.concatenate([streams.unmasked([one[a:b] for one in played.masked.values()]) for a, b in cuts])


def total_of(plain: dict[str, NDArray[np.uint32]]) -> NDArray[np.uint32]:
    total: NDArray[np.uint32] = np.stack(list(plain.values())).sum(axis=0, dtype=np.uint32)
    return total


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_the_sum_is_the_plain_sum_whoever_drops_at_whatever_step(data: st.DataObject) -> None:
    size = data.draw(st.integers(3, 7))
    colluders = data.draw(st.integers(0, min(1, (size - 1) // 2)))
    terms = replace(TERMS, colluders=colluders)
    least, names = threshold(size, colluders), NAMES[:size]
    dealt = dealt_round(size, least, terms=terms)
    order = data.draw(st.permutations(names))
    dealing_count = data.draw(st.integers(max(least, 3), size))
    dealers = tuple(sorted(order[:dealing_count]))
    summed = tuple(sorted(data.draw(st.permutations(dealers))[: data.draw(st.integers(max(least, 3), dealing_count))]))
    holders = tuple(data.draw(st.permutations(dealers))[: data.draw(st.integers(least, dealing_count))])
    plain = plain_numbers(summed)
    played = played_round(dealt, dealers, plain, holders, terms)
    played.fixed.check()
    played.fixed.check_confirmations(played.confirmations)
    for holder, reveal in played.reveals.items():
        check_reveal(played.fixed, holder, reveal, dealt.shares)
    assert are_revealed(played.fixed, played.reveals, {})
    assert np.array_equal(unmasked(played), total_of(plain))


FIVE = dealt_round(5, 4)
NAMES5 = FIVE.names
ALL = played_round(FIVE, NAMES5, plain_numbers(NAMES5[:4]), NAMES5)  # emil is outside the sum, and still reveals


def test_deltas_of_unequal_weights_become_their_weighted_mean() -> None:
    ring, rng = Ring(5, 4.0, 1024), np.random.default_rng(5)
    weights = dict(zip(NAMES5[:4], (100, 1024, 3, 640), strict=True))
    deltas = {name: rng.normal(0, 0.5, VALUES - 64).astype(np.float32) for name in weights}
    plain, shortened = {}, {}
    for name, delta in deltas.items():
        clipping = clipping_of(delta, ring)
        words = MemberTail(weights[name], clipping.is_clipped, weights[name], 1024, loss=1.5).words()
        plain[name] = np.concatenate([words, quantised(delta, clipping, weights[name], ring, rng)])
        shortened[name] = clipping.factor * delta.astype(np.float64)
    total = unmasked(played_round(FIVE, NAMES5, plain, NAMES5[1:]))
    tail = SumTail.of(total[:64].tolist(), 4, ring, 1024)
    assert (tail.weight, tail.clipped) == (1767, 4)
    expected = sum(weights[name] * shortened[name] for name in weights) / 1767
    assert np.abs(decoded_mean(total[64:], ring, tail.weight) - expected).max() < 4 * 1024 / 1767 / ring.scale


def test_a_masked_update_looks_random_and_a_late_one_stays_so_after_its_m_is_revealed() -> None:
    """Emil is declared outside the sum and m is revealed. Its update arrives late: b still hides it."""
    zeros = np.zeros(20_000, np.uint32)
    late = masked_by(FIVE, "emil", NAMES5, zeros)
    played = ALL
    opened = open_round(played.fixed, FIVE.shares, played.reveals)
    keys = [
        (dealing.pair_key(opened.masks["emil"], FIVE.r1, "emil", name), opened.halves["emil", name])
        for name in NAMES5[:4]
    ]
    streams = [
        pair_key_with_sign(dealt, got, played.fixed.dealers_sha256, 5, index)
        for index, (dealt, got) in enumerate(keys, 1)
    ]
    add_masks(late, 0, opposite(streams))
    counts = np.bincount(late.view(np.uint8), minlength=256)
    assert ((counts - 312.5) ** 2 / 312.5).sum() < 400  # chi-square, 255 degrees of freedom; 6 standard deviations
    assert "emil" not in opened.own


def test_a_wrong_mask_is_found_by_the_tail() -> None:
    ring = Ring(5, 4.0, 1024)
    plain = {name: np.concatenate([MemberTail(1, False, 1, 1024).words(), np.zeros(86, np.uint32)]) for name in NAMES5}
    played = played_round(FIVE, NAMES5, plain, NAMES5)
    assert SumTail.of(unmasked(played)[:64].tolist(), 5, ring, 1024).weight == 5
    wrong = replace(played, masked={**played.masked, "ann": masked_by(FIVE, "ann", NAMES5[:4], plain["ann"])})
    with pytest.raises(SumImplausible):
        SumTail.of(unmasked(wrong)[:64].tolist(), 5, ring, 1024)


def changed(fixed: FixedRound, **changes: object) -> FixedRound:
    return replace(fixed, **changes)  # type: ignore[arg-type]


def test_lists_that_make_no_round_are_refused() -> None:
    fixed = ALL.fixed
    fixed.check()
    for wrong in (
        changed(fixed, dealers=NAMES5[::-1]),
        changed(fixed, dealers=(*NAMES5, "zoe")),
        changed(fixed, dealers=NAMES5[:3]),  # below the threshold, and an update is of no dealer
        changed(fixed, updates=fixed.updates[:3]),
        changed(fixed, updates=fixed.updates[::-1]),
        changed(fixed, updates=(*fixed.updates[:3], fixed.updates[2])),
        changed(fixed, dealers=NAMES5[1:]),
        changed(fixed, terms=replace(TERMS, places=4)),
    ):
        with pytest.raises(InvalidArgument):
            wrong.check()


def test_three_members_are_never_two_in_a_sum() -> None:
    terms = replace(TERMS, colluders=0)
    dealt = dealt_round(3, 2, terms=terms)
    two = played_round(dealt, dealt.names, plain_numbers(dealt.names[:2]), dealt.names, terms)
    with pytest.raises(InvalidArgument, match="must be at least 3"):
        two.fixed.check()
    played_round(dealt, dealt.names, plain_numbers(dealt.names), dealt.names, terms).fixed.check()


def test_signatures_over_another_round_blame_the_coordinator() -> None:
    fixed = ALL.fixed
    other_r2 = changed(fixed, dealers=NAMES5[:4])
    assert other_r2.dealers_sha256 != fixed.dealers_sha256
    with pytest.raises(BadView, match="its update is not signed for these dealers"):
        other_r2.check()  # the attack on R2: a split view of the dealers
    for wrong in (
        changed(fixed, terms=replace(TERMS, round=8)),
        changed(fixed, updates=(replace(fixed.updates[0], digest=digest("another")), *fixed.updates[1:])),
        changed(
            fixed,
            members=(replace(fixed.members[0], keys=replace(fixed.members[0].keys, checked=False)), *fixed.members[1:]),
        ),
    ):
        with pytest.raises(BadView):
            wrong.check()


def test_a_sum_has_enough_confirmations_of_its_dealers_and_of_no_other_sum() -> None:
    fixed, good = ALL.fixed, ALL.confirmations
    fixed.check_confirmations(dict(list(good.items())[:4]))
    with pytest.raises(InvalidArgument, match="are 3, must be at least 4"):
        fixed.check_confirmations(dict(list(good.items())[:3]))
    another = Confirmation(digest("R3")).signed(member_key("ann"))
    for wrong in ({"ann": another}, {"ann": good["bob"]}, {"ann": Confirmation(fixed.sum_sha256)}):
        with pytest.raises(BadView, match="ann"):
            fixed.check_confirmations({**good, **wrong})
    four = changed(fixed, dealers=NAMES5[:4])
    no_dealer = {name: Confirmation(four.sum_sha256).signed(member_key(name)) for name in NAMES5}
    with pytest.raises(BadView, match="emil"):
        four.check_confirmations(no_dealer)


def resigned(name: str, reveal: Reveal, values: dict[int, bytes]) -> Reveal:
    return Reveal.of(reveal.sum_sha256, values).signed(member_key(name))


def test_a_reveal_is_good_as_a_whole_or_refused() -> None:
    fixed, reveal = ALL.fixed, ALL.reveals["bob"]
    check_reveal(fixed, "bob", reveal, FIVE.shares)
    values = reveal.values
    other_kind = held_shares(FIVE, "bob", "ann").held.mask
    wrong = [
        ALL.reveals["cleo"],
        replace(reveal, signature=b""),
        Reveal.of(digest("R3"), values).signed(member_key("bob")),
        resigned("bob", reveal, {**values, 1: bytes(33)}),
        resigned("bob", reveal, {**values, 1: other_kind}),
        resigned("bob", reveal, {**values, 1: values[2], 2: values[1]}),
        resigned("bob", reveal, {index: value for index, value in values.items() if index != 3}),
        resigned("bob", reveal, {**values, 6: bytes(33)}),
    ]
    for one in wrong:
        with pytest.raises(InvalidArgument):
            check_reveal(fixed, "bob", one, FIVE.shares)
    with pytest.raises(InvalidArgument, match="has not dealt"):
        check_reveal(changed(fixed, dealers=NAMES5[:4]), "emil", ALL.reveals["emil"], FIVE.shares)


def test_a_holder_that_got_a_bad_box_reveals_all_but_that_dealers_share() -> None:
    fixed, reveal = ALL.fixed, ALL.reveals["bob"]
    without = resigned("bob", reveal, {index: value for index, value in reveal.values.items() if index != 5})
    check_reveal(fixed, "bob", without, FIVE.shares, complained="emil")
    with pytest.raises(InvalidArgument, match="one of each"):
        check_reveal(fixed, "bob", reveal, FIVE.shares, complained="emil")
    four = NAMES5[:4]
    assert are_revealed(fixed, four, {})
    assert not are_revealed(fixed, four, {"bob": "emil"})
    assert are_revealed(fixed, NAMES5, {"bob": "emil"})
    assert not are_revealed(fixed, NAMES5[:3], {})
    reveals = {**ALL.reveals, "bob": without}
    played = replace(ALL, reveals=reveals)
    assert np.array_equal(unmasked(played), total_of(plain_numbers(four)))
    del reveals["ann"]
    with pytest.raises(InvalidArgument, match="of emil there are 3, needed are 4"):
        open_round(fixed, FIVE.shares, reveals)


def dealt_by_a_liar(
    *, own: bytes | None = None, mask: bytes | None = None, degree: int = 4, bad_half: str = "", unopened: str = ""
) -> Dealt:
    """The five's round, in which bob deals wrongly, but so that every share fits its commitment."""
    bob = FIVE.people[1]
    secrets = replace(bob.secrets, own=own or bob.secrets.own, mask=mask or bob.secrets.mask)
    shares, held = dealing.deal(
        *(secrets, bob.key, FIVE.r1, "bob", FIVE.members), threshold=degree, least=2, random_below=numbers("liar")
    )
    boxes = list(shares.boxes)
    for name in filter(None, (bad_half, unopened)):
        index = NAMES5.index(name)
        info, half = dealing.pair_info(FIVE.r1, "bob", name), digest("another half")
        sealed = seal(FIVE.members[index].keys.mask_public, info if bad_half else b"another purpose", half)
        committed = dealing.pair_commitment(FIVE.r1, "bob", name, half)
        box = replace(boxes[index], pair_box=sealed, pair_commitment=committed)
        boxes[index] = box.signed(bob.key, FIVE.r1, "bob", name)
    return replace(FIVE, shares={**FIVE.shares, "bob": Shares(tuple(boxes))}, own={**FIVE.own, "bob": held})


def opened_without(dealt: Dealt, dropped: str) -> None:
    names = tuple(name for name in NAMES5 if name != dropped)
    played = played_round(dealt, NAMES5, plain_numbers(names), names)
    for holder, reveal in played.reveals.items():
        check_reveal(played.fixed, holder, reveal, dealt.shares)
    open_round(played.fixed, dealt.shares, played.reveals)


def test_a_dealer_of_another_secret_is_named() -> None:
    opened_without(dealt_by_a_liar(), "emil")
    with pytest.raises(DealtWrongly, match=r"bob .* another secret"):
        opened_without(dealt_by_a_liar(own=digest("another b")), "emil")
    with pytest.raises(DealtWrongly, match=r"bob .* another secret"):
        opened_without(dealt_by_a_liar(mask=digest("another m")), "bob")


def test_a_dealer_of_a_polynomial_of_a_higher_degree_is_named() -> None:
    with pytest.raises(DealtWrongly, match="bob"):
        opened_without(dealt_by_a_liar(degree=5), "emil")


def test_a_dealer_whose_half_of_a_pair_does_not_follow_from_its_secret_is_named_when_it_drops() -> None:
    dealt = dealt_by_a_liar(bad_half="cleo")
    with pytest.raises(DealtWrongly, match=r"bob .* pair with cleo"):
        opened_without(dealt, "bob")
    opened_without(
        dealt, "cleo"
    )  # cleo drops: what bob has dealt and committed to is what bob masked with, or the tail shows it


def test_a_dealer_whose_pair_box_the_others_cannot_open_is_named() -> None:
    dealt = dealt_by_a_liar(unopened="emil")
    played = played_round(FIVE, NAMES5, plain_numbers(NAMES5[:4]), NAMES5[:4])
    values = {name: dict(reveal.values) for name, reveal in played.reveals.items()}
    for name, own in values.items():
        own[2] = held_shares(dealt, name, "bob").held.own
    reveals = {name: resigned(name, played.reveals[name], own) for name, own in values.items()}
    with pytest.raises(DealtWrongly, match=r"bob .* pair box for emil does not open"):
        open_round(played.fixed, dealt.shares, reveals)


def test_a_pair_box_with_another_half_than_its_commitment_names_its_sealer() -> None:
    boxes = list(FIVE.shares["bob"].boxes)
    info = dealing.pair_info(FIVE.r1, "bob", "emil")
    boxes[4] = replace(boxes[4], pair_box=seal(FIVE.members[4].keys.mask_public, info, digest("another half")))
    shares = {**FIVE.shares, "bob": Shares(tuple(boxes))}
    with pytest.raises(DealtWrongly, match=r"bob .* pair with emil"):
        open_round(ALL.fixed, shares, ALL.reveals)


def test_shares_of_a_number_that_is_no_secret_name_their_dealer() -> None:
    too_large = {index: (2**256 + 5).to_bytes(33, "big") for index in range(1, 6)}  # the constant polynomial
    assert len(split(bytes(32), 2, (1, 2), numbers("x"))) == 2
    reveals = {name: resigned(name, reveal, {**reveal.values, 2: too_large[2]}) for name, reveal in ALL.reveals.items()}
    with pytest.raises(DealtWrongly, match=r"bob .* give no secret"):
        open_round(ALL.fixed, FIVE.shares, reveals)


def test_an_update_statement_is_for_one_list_of_dealers() -> None:
    statement = UpdateStatement("ann", digest("file")).signed(member_key("ann"), ALL.fixed.dealers_sha256)
    assert not statement.is_signed(FIVE.members[0].peer_key_der, changed(ALL.fixed, dealers=NAMES5[:4]).dealers_sha256)


def test_secrets_of_a_round_are_not_shown() -> None:
    opened = open_round(ALL.fixed, FIVE.shares, ALL.reveals)
    assert str(opened) == "OpenedRound()"
