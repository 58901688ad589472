"""Attacks by members: bad boxes and false complaints cost their maker's own place in the sum, and no other update."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from private.evil_client import BAD_BOXES, Change, deals_bad_boxes, false_complaint, r2_of
from private.evil_coordinator import CONFIRM, REVEAL, SHARES, UPDATE, Client, Coordinator, assert_exact, new_round
from support.private_members import digest, member_key
from support.process_harness import process_spec
from support.tasks import task_of

from pluralllm.client.daemon.private_round import Heard, PrivateRound
from pluralllm.client.keeping.history import History
from pluralllm.client.private_rounds.lines import UpdateLine
from pluralllm.client.private_rounds.masking import masking_secrets
from pluralllm.client.private_rounds.notebook import Notebook
from pluralllm.client.private_rounds.steps import confirm, hold, is_too_small
from pluralllm.common.errors.private_rounds import BadBox, BadView, HiddenAmongTooFew, RoundSecretsLost, WrongStep
from pluralllm.common.private_rounds.messages import Complaint, Confirmation, Reveal, UpdateStatement
from pluralllm.common.private_rounds.round_view import MemberComplaint
from pluralllm.common.words.ids import Digest, RoundNumber, RunId

# 6 members, 1 colluder: t = 4, so that two may be outside the sum.


def dealt(folder: Path) -> Coordinator:
    coordinator = new_round(folder, 6, hidden_among=2)
    coordinator.run(SHARES)
    return coordinator


def assert_masks_nothing(coordinator: Coordinator, name: str) -> None:
    client = coordinator.clients[name]
    holding = hold(client.notebook, client.me, coordinator.honest_view(name))
    assert holding.bad
    for written in (False, True):  # whether the complaint is in the notebook
        with pytest.raises(WrongStep if written else BadBox):
            masking_secrets(client.notebook if written else notebook_without_complaint(client), client.me, holding)


def notebook_without_complaint(client: Client) -> Notebook:
    notebook = Notebook(client.folder / "private" / "first.7", client.notebook.run, client.notebook.round)
    del notebook._lines["complaint"]
    return notebook


@pytest.mark.parametrize("change", BAD_BOXES, ids=lambda change: change.__name__)
def test_16_a_dealer_with_a_bad_box_and_its_victim_are_left_out_and_the_others_updates_are_summed(
    tmp_path: Path, change: Change
) -> None:
    coordinator = dealt(tmp_path)
    deals_bad_boxes(coordinator, "fay", ("ann",), change)
    assert coordinator.ask(UPDATE) == {}
    (complaint,) = coordinator.sent(Complaint)
    assert complaint.dealer == "fay"
    assert coordinator.latest(Complaint)["ann"].is_signed(
        coordinator.members[0].peer_key_der, r2_of(coordinator), "ann"
    )
    assert coordinator.sent(UpdateStatement, "ann") == []
    assert_masks_nothing(coordinator, "ann")
    assert [update.name for update in coordinator.updates] == ["bob", "cleo", "dora", "emil"]
    honest = [name for name in coordinator.clients if name != "fay"]
    assert coordinator.ask(CONFIRM, honest) == {}
    assert coordinator.ask(REVEAL, honest) == {}
    assert len(coordinator.latest(Reveal)["ann"].shares) == 5, "it has no share of fay"
    assert_exact(coordinator)


def test_16_a_client_that_has_complained_masks_nothing_later_and_complains_of_nobody_else(tmp_path: Path) -> None:
    coordinator = dealt(tmp_path)
    deals_bad_boxes(coordinator, "fay", ("ann",), BAD_BOXES[0])
    deals_bad_boxes(coordinator, "emil", ("ann",), BAD_BOXES[1])
    good = dict(coordinator.dealt)
    for _ in range(2):
        coordinator.ask(UPDATE, ("ann",))
        coordinator.clients["ann"].restart()
    coordinator.dealt = good
    coordinator.ask(UPDATE, ("ann",))
    assert {one.dealer for one in coordinator.sent(Complaint)} == {"emil"}, "the first bad one by name"
    assert len({one.signature for one in coordinator.sent(Complaint)}) == 1
    assert coordinator.sent(UpdateStatement) == []


def test_29_a_member_that_calls_a_good_box_bad_takes_itself_out_and_the_dealer_still_confirms_and_reveals(
    tmp_path: Path,
) -> None:
    coordinator = dealt(tmp_path)
    coordinator.ask(UPDATE, [name for name in coordinator.clients if name != "fay"])
    coordinator.got.append(("fay", false_complaint(coordinator, "fay", "ann")))
    coordinator._close(UPDATE)
    assert [update.name for update in coordinator.updates] == ["bob", "cleo", "dora", "emil"]
    assert coordinator.clients["ann"].has_receipt
    honest = [name for name in coordinator.clients if name != "fay"]
    assert coordinator.ask(CONFIRM, honest) == {}
    assert coordinator.ask(REVEAL, honest) == {}
    assert len(coordinator.sent(Reveal)) == 5
    assert_exact(coordinator)


def test_29_a_complaint_that_the_coordinator_invents_does_not_excuse_that_an_update_is_missing(tmp_path: Path) -> None:
    coordinator = dealt(tmp_path)
    coordinator.run(UPDATE)
    true = false_complaint(coordinator, "fay", "ann")
    coordinator.updates = tuple(update for update in coordinator.updates if update.name not in ("ann", "fay"))
    for invented in (
        MemberComplaint("fay", replace(true, signature=false_complaint(coordinator, "fay", "bob").signature)),
        MemberComplaint("bob", true),
        MemberComplaint("hana", true),
        MemberComplaint("fay", Complaint("ann", digest("x")).signed(member_key("fay"), r2_of(coordinator), "fay")),
        MemberComplaint("fay", Complaint("ann", true.box_sha256).signed(member_key("fay"), digest("R2"), "fay")),
        MemberComplaint("fay", false_complaint(coordinator, "fay", "bob")),
    ):
        coordinator.complaints = (invented,)
        assert isinstance(coordinator.ask(CONFIRM, ("ann",))["ann"], BadView)
    assert coordinator.sent(Confirmation) == []
    coordinator.complaints = (MemberComplaint("fay", true),)
    assert coordinator.ask(CONFIRM, ("ann",)) == {}


@pytest.mark.parametrize("victims", [("ann",), ("ann", "bob"), ("ann", "bob", "cleo")])
def test_29_bad_boxes_for_many_peers_stop_the_round_at_worst_and_show_no_update(
    tmp_path: Path, victims: tuple[str, ...]
) -> None:
    coordinator = dealt(tmp_path)
    deals_bad_boxes(coordinator, "fay", victims, BAD_BOXES[0])
    coordinator.ask(UPDATE)
    assert {name for name, message in coordinator.got if isinstance(message, Complaint)} == set(victims)
    honest = [name for name in coordinator.clients if name != "fay"]
    refusals = coordinator.ask(CONFIRM, honest)
    if len(victims) == 1:
        assert refusals == {}
    else:  # fewer than t = 4 updates are left
        assert set(refusals) == set(honest)
        assert coordinator.sent(Confirmation) == []
    coordinator.ask(REVEAL, honest)
    assert bool(coordinator.sent(Reveal)) == (len(victims) == 1)


def test_32_a_key_of_a_pair_that_is_not_the_one_its_dealer_has_signed_is_complained_of(tmp_path: Path) -> None:
    coordinator = dealt(tmp_path)
    pair_of_other = coordinator.dealt["fay"].box_of(2).pair_box  # sealed for bob
    deals_bad_boxes(coordinator, "fay", ("ann",), lambda box: replace(box, pair_box=pair_of_other))
    coordinator.ask(UPDATE, ("ann",))
    assert coordinator.sent(Complaint)[0].dealer == "fay"


def test_32_a_box_with_a_bad_signature_blames_the_coordinator_and_nobody_complains(tmp_path: Path) -> None:
    coordinator = dealt(tmp_path)
    boxes = list(coordinator.dealt["fay"].boxes)
    boxes[0] = BAD_BOXES[0](boxes[0])
    coordinator.dealt["fay"] = replace(coordinator.dealt["fay"], boxes=tuple(boxes))
    refusal = coordinator.ask(UPDATE, ("ann",))["ann"]
    assert isinstance(refusal, BadView)
    assert refusal.member == "fay"
    assert coordinator.sent(Complaint) == []
    assert coordinator.sent(UpdateStatement) == []


# 30: a member that asks for a larger sum than there can be


def test_30_a_member_that_asks_for_too_large_a_sum_is_left_out_and_the_others_sum_is_made(tmp_path: Path) -> None:
    """Otherwise one member could make every round fail: nobody confirms a sum smaller than one of its members asks for."""
    coordinator = new_round(tmp_path, 6, hidden_among=2)
    fay = coordinator.clients["fay"]
    fay.me = replace(fay.me, hidden_among=5)
    coordinator.run(SHARES)
    assert coordinator.dealt["fay"].least == 6
    coordinator.ask(UPDATE, [name for name in coordinator.clients if name != "ann"])
    with_fay = coordinator.updates
    refusals = coordinator.ask(CONFIRM)
    assert {type(error) for error in refusals.values()} == {HiddenAmongTooFew}
    assert set(refusals) == set(coordinator.clients)
    coordinator.updates = tuple(update for update in with_fay if update.name != "fay")
    for step in (CONFIRM, REVEAL):
        refusals = coordinator.ask(step)
        assert {name: type(error) for name, error in refusals.items()} == {"fay": HiddenAmongTooFew}
    assert is_too_small(fay.notebook, fay.me, coordinator.honest_view("fay")), "so that its receipt accuses nobody"
    assert_exact(coordinator)


def acknowledged(client: Client) -> tuple[PrivateRound, History]:
    """Returns the round of a client's daemon, and its history with the receipt of the client's update."""
    history, task = History(client.folder / "history"), task_of(process_spec(), run="first", round_number=7)
    with history.handing_in(task, Digest(client.notebook.needed(UpdateLine).digest), 1):
        pass
    means: Any = SimpleNamespace(history=history, sums=client.sums, transport=None)
    return PrivateRound(means, Heard(), task, cast(Any, None)), history


def test_30_the_receipt_of_a_client_that_has_asked_for_a_larger_sum_accuses_nobody(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path, 6, hidden_among=2)
    fay, emil, dora = (coordinator.clients[name] for name in ("fay", "emil", "dora"))
    fay.me = replace(fay.me, hidden_among=5)
    coordinator.run(UPDATE)
    dora.me = replace(dora.me, hidden_among=9)  # of a policy that its owner has changed since
    for client, error in ((fay, HiddenAmongTooFew), (emil, BadView), (dora, HiddenAmongTooFew)):
        round_, history = acknowledged(client)
        view = coordinator.honest_view(client.name)
        without_it = replace(view, updates=tuple(one for one in view.updates if one.name != client.name)[:4])
        with pytest.raises(error):
            round_._signed_sum(confirm, client.notebook, client.me, without_it)
        (update,) = history.seen(RunId("first")).own_updates[RoundNumber(7)]
        assert update.acknowledged == (client is not fay), "the others' are the proof that they were left out"


# 33: one file in a round


def test_33_a_client_masks_one_file_in_a_round_and_none_after_it_has_confirmed(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path)
    coordinator.run(UPDATE - 1)
    coordinator.ask(UPDATE, ("ann", "bob", "cleo", "dora"))
    ann, emil = coordinator.clients["ann"], coordinator.clients["emil"]
    ann.outbox.write_bytes(ann.outbox.read_bytes()[::-1])
    assert isinstance(coordinator.ask(UPDATE, ("ann",))["ann"], WrongStep)
    assert coordinator.ask(CONFIRM) == {}
    assert isinstance(coordinator.ask(UPDATE, ("emil",))["emil"], WrongStep)
    emil.restart()
    assert isinstance(coordinator.ask(UPDATE, ("emil",))["emil"], WrongStep)
    assert coordinator.sent(UpdateStatement, "emil") == []
    assert not emil.outbox.exists()
    assert len(coordinator.sent(UpdateStatement, "ann")) == 1


def test_33_a_client_whose_masked_file_is_lost_leaves_the_round_and_never_masks_again(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path)
    coordinator.run(UPDATE)
    client = coordinator.clients["ann"]
    client.outbox.unlink()
    client.restart()
    assert isinstance(coordinator.ask(UPDATE, ("ann",))["ann"], RoundSecretsLost)


# 34: a base version that this client has not computed again


def test_34_a_client_that_has_not_checked_the_base_masks_only_if_enough_pinned_members_have(tmp_path: Path) -> None:
    names = ("ann", "bob", "cleo", "dora", "emil", "fay")
    for number, (unchecked, masks) in enumerate(
        (
            (("ann",), True),
            (("ann", "bob", "cleo", "dora"), True),  # emil and fay are more than the one that may collude
            (("ann", "bob", "cleo", "dora", "emil"), False),
            (names, False),
        )
    ):
        coordinator = new_round(tmp_path / str(number), 6, hidden_among=2, unchecked=unchecked)
        coordinator.run(SHARES)
        refusal = coordinator.ask(UPDATE, ("ann",)).get("ann")
        assert (refusal is None) == masks
        assert refusal is None or isinstance(refusal, BadView)
        assert len(coordinator.sent(UpdateStatement)) == masks


def test_34_a_member_that_has_checked_does_not_vouch_for_itself_and_no_stranger_vouches(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path, 6, hidden_among=2, unchecked=("ann", "bob", "cleo", "dora", "emil"), colluders=0)
    coordinator.run(SHARES)
    assert coordinator.ask(UPDATE, ("ann", "fay")) == {}
    ann = coordinator.clients["bob"]
    ann.me = replace(ann.me, pins={name: pin for name, pin in ann.me.pins.items() if name != "fay"})
    assert isinstance(coordinator.ask(UPDATE, ("bob",))["bob"], BadView), "the one that has checked is not pinned"


def test_34_a_claim_to_have_checked_is_signed(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path, 6, hidden_among=2, unchecked=("bob",))
    coordinator.ask(1)
    bob = coordinator.members[1]
    claimed = replace(bob, keys=replace(bob.keys, checked=True))
    coordinator.members = (coordinator.members[0], claimed, *coordinator.members[2:])
    assert isinstance(coordinator.ask(SHARES, ("ann",))["ann"], BadView)
