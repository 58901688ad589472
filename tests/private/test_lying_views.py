"""Attacks of the coordinator by false views: other members, dealers, sums and terms. Numbers are those of the design's list."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from private.evil_coordinator import (
    CONFIRM,
    KEYS,
    REVEAL,
    SHARES,
    STEPS,
    UPDATE,
    Coordinator,
    Lie,
    for_victims,
    honest,
    new_round,
    pins_of,
    without,
)
from structlog.testing import capture_logs
from support.private_members import NAMES, TERMS, dealt_round, digest, member_key, person

from pluralllm.common.errors.private_rounds import (
    AnotherSum,
    BadView,
    HiddenAmongTooFew,
    PeerKeyDiffers,
    RoundSecretsLost,
    TooFewKnown,
    WrongStep,
)
from pluralllm.common.errors.tree import InvalidArgument, RoundClosed
from pluralllm.common.private_rounds.messages import (
    Box,
    Confirmation,
    Keys,
    Reveal,
    RoundMember,
    Share,
    Shares,
    UpdateStatement,
    digest_of_members,
)
from pluralllm.common.private_rounds.peer_keys import public_der
from pluralllm.common.private_rounds.round_view import MemberConfirmation, RoundView
from pluralllm.common.private_rounds.statements import dealers_digest

VICTIM = "cleo"


def revealed(coordinator: Coordinator) -> int:
    return len(coordinator.sent(Reveal))


# 1, 2: two sums of one round


def test_1_a_client_that_has_confirmed_one_sum_confirms_and_reveals_no_other_one(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path, 6, hidden_among=2)
    coordinator.run(UPDATE)
    for client in coordinator.clients.values():
        client.has_receipt = False  # the coordinator gives none, so that its lie is not seen at once
    coordinator.lie = for_victims(("dora", "emil", "fay"), CONFIRM, lambda view: without(view, VICTIM))
    assert coordinator.ask(CONFIRM) == {}
    coordinator.lie = lambda name, step, view: without(view, VICTIM)
    with capture_logs() as logs:
        refusals = coordinator.ask(CONFIRM, ("ann", "bob", VICTIM))
        refusals |= coordinator.ask(REVEAL)
    assert {name: type(error) for name, error in refusals.items()} == {
        **dict.fromkeys(("ann", "bob", VICTIM), AnotherSum),
        **dict.fromkeys(("dora", "emil", "fay"), BadView),  # three signatures are under the threshold
    }
    assert {line["event"] for line in logs} == {"private.another_sum"}
    assert revealed(coordinator) == 0


@pytest.mark.parametrize("split", [("ann", "emil"), ("ann", "bob", "cleo"), ("bob", "cleo", "dora")])
def test_1_no_split_of_the_clients_gives_two_sums_enough_signatures(tmp_path: Path, split: tuple[str, ...]) -> None:
    coordinator = new_round(tmp_path, hidden_among=2)
    coordinator.run(UPDATE)
    for client in coordinator.clients.values():
        client.has_receipt = False
    coordinator.lie = lambda name, step, view: without(view, "emil") if name in split else view
    assert coordinator.ask(CONFIRM) == {}
    assert set(coordinator.ask(REVEAL)) == set(coordinator.clients)
    assert revealed(coordinator) == 0


def test_2_a_reveal_has_no_place_for_two_shares_of_one_member(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path)
    coordinator.run()
    (reveal,) = coordinator.sent(Reveal, "ann")
    assert isinstance(reveal, Reveal)
    with pytest.raises(InvalidArgument, match="there twice"):
        replace(reveal, shares=(reveal.shares[0], *reveal.shares))
    with pytest.raises(InvalidArgument, match="33"):
        Share(1, reveal.shares[0].value * 2)


def test_2_no_share_of_the_other_kind_leaves_later_or_after_a_restart_or_without_the_notebook(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path)
    coordinator.run()
    before = list(coordinator.got)
    coordinator.lie = lambda name, step, view: without(view, VICTIM)
    for client in coordinator.clients.values():
        client.has_receipt = False
    assert {type(error) for error in coordinator.ask(REVEAL).values()} == {AnotherSum}
    for client in coordinator.clients.values():
        client.restart()
    assert {type(error) for error in coordinator.ask(REVEAL).values()} == {AnotherSum}
    for client in coordinator.clients.values():
        for path in (client.folder / "private").glob("*/*"):
            path.unlink()
        client.restart()
    assert {type(error) for error in coordinator.ask(REVEAL).values()} == {RoundSecretsLost}
    assert coordinator.got == before


# 3: other members, other dealers


def test_3_members_that_differ_between_clients_stop_the_round_before_anything_is_masked(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path, 6, hidden_among=2)
    few = ("ann", "bob", "cleo")
    coordinator.ask(KEYS)
    coordinator.lie = lambda name, step, view: five_of(view) if name in few else view
    assert coordinator.ask(SHARES) == {}
    for name in few:  # their boxes are for five members; the sixth gets one of its own kind
        coordinator.dealt[name] = replace(coordinator.dealt[name], boxes=(*coordinator.dealt[name].boxes, padding()))
    refusals = coordinator.ask(UPDATE)
    assert {type(error) for error in refusals.values()} == {BadView}
    assert coordinator.sent(UpdateStatement) == []


def padding() -> Box:
    """Returns a box that nobody can open, in the place of one that was not dealt."""
    return replace(dealt_round(6, 4, least=3).shares["ann"].box_of(6))


def five_of(view: RoundView) -> RoundView:
    names = {"ann", "bob", "cleo", "dora", "emil"}
    return replace(
        view,
        members=view.members[:5],
        dealers=view.dealers[:5],
        boxes=tuple(box for box in view.boxes if box.dealer in names),
    )


def test_3_a_client_shown_other_members_than_it_has_dealt_to_sends_no_shares_and_masks_nothing(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path, 6, hidden_among=2)
    coordinator.run(SHARES)
    sent = len(coordinator.got)
    coordinator.lie = lambda name, step, view: five_of(view)
    for step in (SHARES, UPDATE):
        refusals = coordinator.ask(step, ("ann",))
        assert isinstance(refusals["ann"], BadView)
    assert len(coordinator.got) == sent


def test_3_a_client_shown_two_lists_of_dealers_masks_for_the_first_one_only(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path, 6, hidden_among=2)
    coordinator.run(SHARES)
    narrow = for_victims(("ann",), UPDATE, without_dealer("fay"))
    coordinator.lie = narrow
    assert coordinator.ask(UPDATE, ("ann",)) == {}
    first = coordinator.clients["ann"].notebook.steps
    for lie in (for_victims((), UPDATE, five_of), for_victims(("ann",), UPDATE, without_dealer("bob"))):
        coordinator.lie = lie
        assert isinstance(coordinator.ask(UPDATE, ("ann",))["ann"], BadView)
    assert coordinator.clients["ann"].notebook.steps == first
    assert len(coordinator.sent(UpdateStatement)) == 1


def without_dealer(*names: str) -> Callable[[RoundView], RoundView]:
    """Returns a change of a view: it lacks some dealers and their boxes."""

    def change(view: RoundView) -> RoundView:
        return replace(
            view,
            dealers=tuple(name for name in view.dealers if name not in names),
            boxes=tuple(box for box in view.boxes if box.dealer not in names),
        )

    return change


def test_3_a_list_of_dealers_that_cannot_be_or_lacks_a_box_fixes_nothing(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path, 6, hidden_among=2)
    coordinator.run(SHARES)
    lists: tuple[Callable[[RoundView], RoundView], ...] = (
        lambda view: replace(view, dealers=view.dealers[1:]),
        without_dealer("dora", "emil", "fay"),
        lambda view: replace(view, dealers=view.dealers[::-1]),
        lambda view: replace(view, dealers=(*view.dealers, "hana")),
        lambda view: replace(view, boxes=view.boxes[1:]),
        lambda view: replace(view, boxes=view.boxes[::-1]),
    )
    for change in lists:
        coordinator.lie = for_victims(("ann",), UPDATE, change)
        assert isinstance(coordinator.ask(UPDATE, ("ann",))["ann"], BadView)
    assert coordinator.clients["ann"].notebook.steps == ("keys", "shares")
    coordinator.lie = honest
    assert coordinator.ask(UPDATE) == {}


def test_28_a_victim_that_masked_for_other_dealers_gets_no_confirmation_from_anybody(tmp_path: Path) -> None:
    """The victim masks with few neighbours, which are dropped then: without the statements its update would stand alone."""
    coordinator = new_round(tmp_path, 6, hidden_among=2)
    coordinator.run(SHARES)
    narrow = without_dealer("emil")
    coordinator.lie = lambda name, step, view: narrow(view) if name == VICTIM else view
    assert coordinator.ask(UPDATE) == {}
    for dropped in (("bob",), ("fay",), ("bob", "fay"), ()):
        coordinator.updates = tuple(one for one in coordinator.arrived.values() if one.name not in dropped)
        for client in coordinator.clients.values():
            client.has_receipt = client.name not in dropped
        refusals = coordinator.ask(CONFIRM) | coordinator.ask(REVEAL)
        assert {type(error) for error in refusals.values()} == {BadView}
        assert set(refusals) == set(coordinator.clients)
    assert coordinator.sent(Confirmation) == []
    assert revealed(coordinator) == 0


def test_28_a_statement_over_another_digest_or_by_another_member_is_refused(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path)
    coordinator.run(UPDATE)
    victim = next(update for update in coordinator.updates if update.name == VICTIM)
    r2 = r2_of(coordinator)
    for forged in (
        replace(victim, digest=digest("other")),
        replace(victim, digest=digest("other")).signed(member_key("ann"), r2),
        replace(victim, digest=digest("other")).signed(member_key(VICTIM), digest("another R2")),
    ):
        coordinator.lie = with_update(forged)
        refusals = coordinator.ask(CONFIRM)
        assert {error.facts["member"] for error in refusals.values()} == {VICTIM}
    assert coordinator.sent(Confirmation) == []


def r2_of(coordinator: Coordinator) -> bytes:
    """Returns R2 of a coordinator that shows one and the same view to all."""
    r1 = digest_of_members(coordinator.terms.sha256, coordinator.members)
    return dealers_digest(r1, coordinator.dealers)


def with_update(forged: UpdateStatement) -> Lie:
    def lie(name: str, step: int, view: RoundView) -> RoundView:
        return replace(view, updates=tuple(forged if one.name == forged.name else one for one in view.updates))

    return lie


# 4: too few confirmations


def test_4_nothing_is_revealed_without_enough_signatures_of_different_dealers_over_this_sum(tmp_path: Path) -> None:
    other = new_round(tmp_path / "other", terms=replace(TERMS, round=6))
    other.run(CONFIRM)
    coordinator = new_round(tmp_path / "this")
    coordinator.run(CONFIRM)
    good = coordinator.confirmations
    stranger = MemberConfirmation("hana", Confirmation(digest("any")).signed(member_key("hana")).signature)
    views: dict[str, tuple[MemberConfirmation, ...]] = {
        "none at all": (),
        "one too few": good[:3],
        "one of another round": (*good[:3], other.confirmations[3]),
        "one of another sum": (
            *good[:3],
            replace(good[3], signature=Confirmation(digest("x")).signed(member_key("dora")).signature),
        ),
        "one of no dealer": (*good[:3], stranger),
        "one four times": (good[0],) * 4,
        "one as everybody's": tuple(replace(one, signature=good[0].signature) for one in good),
    }
    for confirmations in views.values():
        coordinator.confirmations = confirmations
        refusals = coordinator.ask(REVEAL)
        assert {type(error) for error in refusals.values()} == {BadView}
    assert revealed(coordinator) == 0
    coordinator.confirmations = good[:4]
    assert coordinator.ask(REVEAL) == {}


def test_4_a_signature_of_a_member_that_is_no_dealer_does_not_count(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path, 6, hidden_among=2)
    coordinator.run(CONFIRM, gone={SHARES: ("fay",)})
    three = coordinator.confirmations[:3]
    fay = Confirmation(coordinator.sent(Confirmation)[0].sum_sha256).signed(member_key("fay"))
    coordinator.confirmations = (*three, MemberConfirmation("fay", fay.signature))
    assert {type(error) for error in coordinator.ask(REVEAL, ("ann", "bob")).values()} == {BadView}
    assert revealed(coordinator) == 0


# 5, 30: sums that hide too little


def test_5_a_sum_of_the_victim_and_the_coordinators_own_members_is_not_confirmed(tmp_path: Path) -> None:
    """Nobody has pinned two of the members: the coordinator has invented them, and drops all others but the victim."""
    pinned = ("ann", "bob", VICTIM, "dora", "gus")
    coordinator = new_round(
        tmp_path,
        7,
        colluders=0,
        pinned=dict.fromkeys(("ann", "bob", VICTIM, "dora", "gus"), pinned),
        terms=replace(TERMS, colluders=3),
    )
    coordinator.run(UPDATE)
    for client in coordinator.clients.values():
        client.has_receipt = client.name in (VICTIM, "emil", "fay")
    for kept in ((VICTIM, "emil", "fay"), (VICTIM, "ann", "emil", "fay")):
        coordinator.updates = tuple(one for one in coordinator.arrived.values() if one.name in kept)
        refusals = coordinator.ask(CONFIRM, pinned)
        assert {type(error) for error in refusals.values()} <= {HiddenAmongTooFew, BadView}
        assert set(refusals) == set(pinned)
    assert revealed(coordinator) == 0


def test_30_the_least_sum_that_the_victim_asks_for_binds_all_others(tmp_path: Path) -> None:
    """The victim asks for six updates; all others would confirm four."""
    coordinator = new_round(tmp_path, 6, hidden_among=2)
    victim = coordinator.clients[VICTIM]
    victim.me = replace(victim.me, hidden_among=5)
    coordinator.run(UPDATE)
    coordinator.clients["ann"].has_receipt = False
    coordinator.updates = tuple(update for update in coordinator.updates if update.name != "ann")
    others = [name for name in coordinator.clients if name != VICTIM]
    refusals = coordinator.ask(CONFIRM, others)
    assert {type(error) for error in refusals.values()} == {HiddenAmongTooFew}
    assert set(refusals) == set(others)
    coordinator.updates = tuple(update for update in coordinator.updates if update.name != VICTIM)
    victim.has_receipt = False
    assert coordinator.ask(CONFIRM, others) == {}, "a sum without the victim may be smaller"


def test_30_a_least_that_the_coordinator_lowers_breaks_the_dealers_signature(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path)
    coordinator.run(SHARES)

    def lowered(view: RoundView) -> RoundView:
        return replace(view, boxes=tuple(replace(one, box=replace(one.box, least=1)) for one in view.boxes))

    coordinator.lie = for_victims(("ann",), UPDATE, lowered)
    assert isinstance(coordinator.ask(UPDATE, ("ann",))["ann"], BadView)
    assert coordinator.sent(UpdateStatement) == []
    coordinator.lie = for_victims((), UPDATE, lowered)
    assert coordinator.ask(UPDATE) == {}, "nothing was fixed by the false boxes"


# 6: invented members


def test_6_among_invented_members_no_share_is_dealt(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path, 6, hidden_among=2)
    coordinator.ask(KEYS)
    client = coordinator.clients["ann"]
    for pinned in range(1, 6):
        client.me = replace(client.me, pins=pins_of(NAMES[:pinned]))
        refusal = coordinator.ask(SHARES, ("ann",))["ann"]
        assert isinstance(refusal, TooFewKnown)
        assert refusal.facts == {"members": 6, "pinned": pinned, "needed": 6}
    assert coordinator.sent(Shares, "ann") == []
    client.me = replace(client.me, pins=pins_of(NAMES[:6]))
    assert coordinator.ask(SHARES, ("ann",)) == {}


def test_6_members_in_which_no_sum_can_hide_the_update_get_no_share(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path, 5, hidden_among=5)
    coordinator.ask(KEYS)
    assert {type(error) for error in coordinator.ask(SHARES).values()} == {HiddenAmongTooFew}
    assert coordinator.sent(Shares) == []


# 7: keys of members


def test_7_a_pinned_member_with_another_key_gets_no_share(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path)
    coordinator.ask(KEYS)
    impostor = member_key("hana")
    keys = person("hana").secrets.keys(VICTIM, checked=True).signed(impostor, TERMS.sha256, VICTIM)
    members = tuple(
        RoundMember(VICTIM, public_der(impostor), keys) if one.name == VICTIM else one for one in coordinator.members
    )
    coordinator.members = members
    refusals = coordinator.ask(SHARES, ("ann", "bob", "dora", "emil"))
    assert {type(error) for error in refusals.values()} == {PeerKeyDiffers}
    assert {error.facts["known"] for error in refusals.values()} == {pins_of((VICTIM,))[VICTIM]}
    assert isinstance(coordinator.ask(SHARES, (VICTIM,))[VICTIM], BadView), "its own entry is not its own"
    assert coordinator.sent(Shares) == []


def test_7_a_list_with_a_key_twice_or_out_of_order_or_too_long_is_no_list(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path)
    coordinator.ask(KEYS)
    members = coordinator.members
    bob, emil = members[1], members[4]
    lists = {
        "a peer key twice": (*members[:4], replace(emil, peer_key_der=bob.peer_key_der)),
        "a public key twice": (*members[:4], replace(emil, keys=replace(emil.keys, box_public=bob.keys.box_public))),
        "mask key as box key": (*members[:4], replace(emil, keys=replace(emil.keys, box_public=bob.keys.mask_public))),
        "a member twice": (*members, emil),
        "out of order": (*members[:3], emil, members[3]),
        "two members": members[:2],
        "without the client": members[1:],
        "more than places": (*members, *(person(name).member for name in ("fay", "gus", "hana", "zoe"))),
    }
    for shown in lists.values():
        coordinator.members = shown
        assert isinstance(coordinator.ask(SHARES, ("ann",))["ann"], BadView)
    assert coordinator.sent(Shares) == []


def test_7_two_roster_heads_give_two_terms_so_that_no_keys_are_valid_for_both(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path)
    victim = coordinator.clients[VICTIM]
    victim.me = replace(victim.me, terms=replace(TERMS, roster_head=digest("another roster")))
    refusals = coordinator.ask(KEYS)
    assert isinstance(refusals[VICTIM], WrongStep), "the honest view has the others' head"
    coordinator.lie = for_victims((VICTIM,), KEYS, lambda view: replace(view, terms=victim.me.terms))
    assert coordinator.ask(KEYS) == {}
    refusals = coordinator.ask(SHARES)
    assert {type(error) for name, error in refusals.items() if name != VICTIM} == {BadView}
    assert coordinator.sent(Shares) == []


# 8: other terms


OTHER_TERMS = (
    replace(TERMS, base_digest=digest("crafted")),
    replace(TERMS, base_record_sha256=digest("crafted")),
    replace(TERMS, base_version=5),
    replace(TERMS, spec_sha256=digest("crafted")),
    replace(TERMS, round=8),
    replace(TERMS, run="second"),
    replace(TERMS, federation="other"),
    replace(TERMS, colluders=0),
    replace(TERMS, places=7),
    replace(TERMS, roster_head=digest("crafted")),
)


def test_8_a_client_refuses_every_step_under_terms_that_are_not_its_own(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path)
    coordinator.run(CONFIRM)
    before = list(coordinator.got)
    for other in OTHER_TERMS:
        coordinator.lie = lambda name, step, view, shown=other: replace(view, terms=shown)  # type: ignore[misc]
        for step in STEPS:
            assert isinstance(coordinator.ask(step, ("ann",))["ann"], WrongStep)
    assert coordinator.got == before


def test_8_a_victim_with_another_base_has_signatures_that_nobody_accepts(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path)
    crafted = replace(TERMS, base_digest=digest("crafted"))
    victim = coordinator.clients[VICTIM]
    victim.me = replace(victim.me, terms=crafted)
    coordinator.lie = lambda name, step, view: replace(view, terms=crafted) if name == VICTIM else view
    assert coordinator.ask(KEYS) == {}
    refusals = coordinator.ask(SHARES)
    assert {error.facts["member"] for name, error in refusals.items() if name != VICTIM} == {VICTIM}
    assert refusals[VICTIM].facts["member"] == "ann", "and it accepts nobody's"
    assert coordinator.sent(Shares) == []


# 11: replays


def test_11_messages_of_an_earlier_round_are_refused_and_a_closed_round_gets_no_keys(tmp_path: Path) -> None:
    earlier = new_round(tmp_path, terms=replace(TERMS, round=6))
    earlier.run()
    for client in earlier.clients.values():
        client.notebooks.close(client.notebook.run, client.notebook.round)
        with pytest.raises(RoundClosed):
            client.restart()
    coordinator = new_round(tmp_path)
    coordinator.ask(KEYS)
    assert not {keys.mask_public for keys in earlier.sent(Keys) if isinstance(keys, Keys)} & {
        keys.mask_public for keys in coordinator.sent(Keys) if isinstance(keys, Keys)
    }
    true_members = coordinator.members
    coordinator.members = tuple(
        old if old.name == VICTIM else new for old, new in zip(earlier.members, true_members, strict=True)
    )
    assert {error.facts["member"] for error in coordinator.ask(SHARES).values()} == {VICTIM}
    coordinator.members = true_members
    coordinator.ask(SHARES)
    true_boxes = dict(coordinator.dealt)
    coordinator.dealt[VICTIM] = earlier.dealt[VICTIM]
    refusals = coordinator.ask(UPDATE, ("ann", "bob"))
    assert {error.facts["member"] for error in refusals.values()} == {VICTIM}
    coordinator.dealt = true_boxes
    coordinator.ask(UPDATE)
    true_updates = coordinator.updates
    coordinator.updates = tuple(earlier.arrived[one.name] if one.name == VICTIM else one for one in true_updates)
    assert {error.facts["member"] for error in coordinator.ask(CONFIRM).values()} == {VICTIM}
    coordinator.updates = true_updates
    coordinator.ask(CONFIRM)
    coordinator.confirmations = earlier.confirmations
    assert {type(error) for error in coordinator.ask(REVEAL).values()} == {BadView}
    assert revealed(coordinator) == 0


# 12: an update with a receipt that is declared dropped


def test_12_the_owner_of_an_acknowledged_update_confirms_no_sum_without_it(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path)
    coordinator.run(UPDATE)
    coordinator.updates = tuple(update for update in coordinator.updates if update.name != VICTIM)
    refusals = coordinator.ask(CONFIRM) | coordinator.ask(REVEAL)
    assert {name: type(error) for name, error in refusals.items()} == {VICTIM: BadView}
    assert "receipt" in str(refusals[VICTIM])
    assert coordinator.sent(Confirmation, VICTIM) == []
    assert coordinator.sent(Reveal, VICTIM) == []
    in_sum = {update.name for update in coordinator.updates}
    assert VICTIM not in in_sum, "the others reveal m of the victim and never b, so that its file stays masked by b"


def test_12_an_update_of_this_client_that_it_has_not_sent_is_refused(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path)
    coordinator.run(UPDATE - 1)
    coordinator.ask(UPDATE, ("ann", "bob", "dora", "emil"))
    r2 = r2_of(coordinator)
    forged = UpdateStatement(VICTIM, digest("forged")).signed(member_key(VICTIM), r2)
    coordinator.updates = tuple(sorted((*coordinator.updates, forged), key=lambda one: one.name))
    assert isinstance(coordinator.ask(CONFIRM, (VICTIM,))[VICTIM], BadView)
    assert coordinator.sent(Confirmation, VICTIM) == []


# 18: messages in another member's name


def test_18_keys_boxes_and_updates_in_another_members_name_are_refused(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path)
    coordinator.ask(KEYS)
    true_members = coordinator.members
    ann, bob, *others = true_members
    coordinator.members = (ann, replace(bob, keys=others[0].keys), replace(others[0], keys=bob.keys), *others[1:])
    assert {type(error) for error in coordinator.ask(SHARES).values()} == {BadView}
    coordinator.members = true_members
    coordinator.ask(SHARES)
    true_boxes = dict(coordinator.dealt)
    coordinator.dealt["bob"], coordinator.dealt[VICTIM] = true_boxes[VICTIM], true_boxes["bob"]
    assert isinstance(coordinator.ask(UPDATE, ("ann",))["ann"], BadView)
    coordinator.dealt = true_boxes

    def for_another(view: RoundView) -> RoundView:
        boxes = tuple(replace(one, box=true_boxes[one.dealer].box_of(2)) for one in view.boxes if one.dealer != "bob")
        return replace(view, boxes=(view.boxes[0], *boxes))

    coordinator.lie = for_victims(("ann",), UPDATE, for_another)
    assert isinstance(coordinator.ask(UPDATE, ("ann",))["ann"], BadView)
    assert coordinator.sent(UpdateStatement) == []


def test_18_a_list_of_updates_that_cannot_be_is_refused(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path, 6, hidden_among=2)
    coordinator.run(UPDATE, gone={SHARES: ("fay",)})
    updates = coordinator.updates
    stranger = UpdateStatement("fay", digest("x")).signed(member_key("fay"), r2_of(coordinator))
    for shown in (updates[::-1], (updates[0], *updates), (*updates, stranger), ()):
        coordinator.updates = shown
        assert set(coordinator.ask(CONFIRM, coordinator.dealers)) == set(coordinator.dealers)
    assert coordinator.sent(Confirmation) == []


def test_5_nothing_is_masked_for_so_few_dealers_that_no_sum_can_hide_it(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path, 6, hidden_among=4)
    refusals = coordinator.run(UPDATE, gone={SHARES: ("emil", "fay")})
    assert {name: type(error) for name, error in refusals.items()} == dict.fromkeys(
        ("ann", "bob", "cleo", "dora"), HiddenAmongTooFew
    )
    assert coordinator.sent(UpdateStatement) == []


def test_5_a_holder_outside_the_sum_confirms_none_that_hides_too_little_by_its_own_pins(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path, 6, colluders=0, hidden_among=2, terms=replace(TERMS, colluders=3))
    ann = coordinator.clients["ann"]
    ann.me = replace(ann.me, pins=pins_of(("ann", "bob", "cleo", "dora")), hidden_among=4)
    coordinator.run(SHARES)
    coordinator.ask(UPDATE, [name for name in coordinator.clients if name != "ann"])
    refusals = coordinator.ask(CONFIRM)
    assert {name: type(error) for name, error in refusals.items()} == {"ann": HiddenAmongTooFew}
