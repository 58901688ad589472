"""Whole private rounds with honest parties, with members that go away at each step, and with clients that start again."""

from dataclasses import replace
from pathlib import Path

import pytest
from private.evil_coordinator import CONFIRM, KEYS, REVEAL, SHARES, STEPS, UPDATE, assert_exact, new_round

from pluralllm.common.errors.private_rounds import BadView, HiddenAmongTooFew
from pluralllm.common.private_rounds.messages import Confirmation, Reveal


def test_an_honest_round_ends_with_one_share_of_every_dealer_from_every_holder(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path)
    assert coordinator.run() == {}
    reveals = coordinator.sent(Reveal)
    assert [list(one.values) for one in reveals] == [[1, 2, 3, 4, 5]] * 5
    assert_exact(coordinator)


# 5 members and 1 colluder: t = 4, so that one may go away.
@pytest.mark.parametrize("step", STEPS)
def test_as_many_members_as_may_go_away_at_any_step_do_not_stop_the_round(tmp_path: Path, step: int) -> None:
    coordinator = new_round(tmp_path, hidden_among=2)
    assert coordinator.run(gone={step: ("emil",)}) == {}
    assert len(coordinator.sent(Reveal)) >= coordinator.threshold
    assert coordinator.threshold == (4 if step > KEYS else 3)
    assert_exact(coordinator)


@pytest.mark.parametrize("step", STEPS)
def test_with_one_member_fewer_nothing_is_revealed_or_too_little(tmp_path: Path, step: int) -> None:
    coordinator = new_round(tmp_path, hidden_among=2)
    gone = ("bob", "emil")
    refusals = coordinator.run(gone={step: gone})
    reveals = coordinator.sent(Reveal)
    if step == KEYS:  # a round of three members, of which nobody may go away
        assert len(reveals) == coordinator.threshold == 3
    elif step == REVEAL:
        assert len(reveals) == 3 < coordinator.threshold
    else:
        assert reveals == []
        assert set(refusals) == {"ann", "cleo", "dora"}
        expected = {SHARES: BadView, UPDATE: HiddenAmongTooFew, CONFIRM: BadView}[step]
        assert {type(error) for error in refusals.values()} == {expected}


def test_a_client_that_delivers_no_update_still_confirms_and_reveals(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path)
    coordinator.run(UPDATE - 1)
    coordinator.ask(UPDATE, ("ann", "bob", "cleo", "dora"))
    assert coordinator.ask(CONFIRM) == {}
    assert coordinator.ask(REVEAL) == {}
    assert len(coordinator.sent(Confirmation, "emil")) == len(coordinator.sent(Reveal, "emil")) == 1
    assert_exact(coordinator)


def test_a_holder_that_was_away_while_others_confirmed_confirms_before_it_reveals(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path)
    coordinator.run(UPDATE)
    coordinator.ask(CONFIRM, ("ann", "bob", "cleo", "dora"))
    assert coordinator.ask(REVEAL) == {}
    assert coordinator.clients["emil"].notebook.steps[-2:] == ("confirm", "reveal")


def test_the_boxes_that_a_client_has_kept_count_whatever_is_shown_later(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path)
    coordinator.run(UPDATE)
    coordinator.lie = lambda name, step, view: replace(view, boxes=())
    assert coordinator.ask(CONFIRM) == {}
    coordinator.lie = lambda name, step, view: replace(view, boxes=view.boxes[:1])
    for client in coordinator.clients.values():
        client.restart()
    assert coordinator.ask(REVEAL) == {}
    assert_exact(coordinator)


def test_a_client_that_starts_again_after_any_step_says_the_same_again(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path)
    for step in STEPS:
        coordinator.ask(step)
        first = dict(coordinator.got[-5:])
        for client in coordinator.clients.values():
            client.restart()
        assert coordinator.ask(step) == {}
        assert dict(coordinator.got[-5:]) == first
    assert_exact(coordinator)
