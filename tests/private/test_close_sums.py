"""Attacks by the difference of two sums from one model version (CORRECTIONS 29): over runs, and over a round that is repeated."""

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
from private.evil_coordinator import CONFIRM, REVEAL, UPDATE, Coordinator, new_round, pins_of
from support.private_members import NAMES, TERMS, digest

from pluralllm.client.private_rounds.revealed_sums import FILE, RevealedSums
from pluralllm.client.private_rounds.steps import training_seed
from pluralllm.common.errors.private_rounds import SumsTooClose
from pluralllm.common.errors.tree import InvalidConfig
from pluralllm.common.private_rounds.messages import Confirmation, Reveal

SECOND_RUN = replace(TERMS, run="second", round=1)
REPEATED = replace(TERMS, round=8)


def dropped_in(folder: Path, dropped: tuple[str, ...], terms: object = TERMS, size: int = 6) -> Coordinator:
    """Returns a round after UPDATE whose sum lacks some members, which have sent nothing."""
    coordinator = new_round(folder, size, hidden_among=2, terms=terms)  # type: ignore[arg-type]
    coordinator.run(UPDATE - 1)
    coordinator.ask(UPDATE, [name for name in coordinator.clients if name not in dropped])
    return coordinator


@pytest.mark.parametrize("terms", [SECOND_RUN, REPEATED], ids=["second run", "round repeated"])
def test_29_a_sum_without_one_member_is_not_confirmed_after_the_sum_with_it_was_revealed(
    tmp_path: Path, terms: object
) -> None:
    first = new_round(tmp_path, 6, hidden_among=2)
    assert first.run() == {}
    second = dropped_in(tmp_path, ("cleo",), terms)
    refusals = second.ask(CONFIRM) | second.ask(REVEAL)
    assert {type(error) for error in refusals.values()} == {SumsTooClose}
    assert set(refusals) == set(second.clients)
    assert second.sent(Confirmation) == []
    assert second.sent(Reveal) == []


def test_29_the_same_members_may_be_summed_again_and_their_updates_are_trained_anew(tmp_path: Path) -> None:
    first = new_round(tmp_path, 5)
    assert first.run() == {}
    second = new_round(tmp_path, 5, terms=REPEATED)
    assert second.run() == {}
    for name, client in second.clients.items():
        other = first.clients[name]
        assert training_seed(client.notebook, client.me) != training_seed(other.notebook, other.me)
        client.restart()
        assert training_seed(client.notebook, client.me) == training_seed(second.clients[name].notebook, client.me)


def test_29_sums_on_different_versions_are_not_compared(tmp_path: Path) -> None:
    assert new_round(tmp_path, 6, hidden_among=2).run() == {}
    second = dropped_in(tmp_path, ("cleo",), replace(REPEATED, base_digest=digest("next base")))
    assert second.ask(CONFIRM) == {}
    assert second.ask(REVEAL) == {}


def test_29_a_sum_may_differ_in_as_many_pinned_members_as_hide_each_other(tmp_path: Path) -> None:
    """Two of three members in the difference are honest, which is what the policy asks for here."""
    me = new_round(tmp_path, 8, hidden_among=2).clients["ann"].me
    sums = RevealedSums(tmp_path)
    sums.note(me, ("ann", "bob", "cleo", "dora", "emil"))
    sums.check(me, ("ann", "bob", "cleo", "dora", "emil"))
    sums.check(me, ("ann", "bob"))
    sums.check(me, ("ann", "bob", "cleo", "dora", "fay", "gus"))
    for names in (("ann", "bob", "cleo"), ("ann", "bob", "cleo", "dora", "fay"), ("bob", "cleo", "dora", "emil")):
        with pytest.raises(SumsTooClose):
            sums.check(me, names)
    few = replace(me, pins={name: pin for name, pin in me.pins.items() if name != "dora"})
    with pytest.raises(SumsTooClose):
        sums.check(few, ("ann", "bob"))


def test_29_the_score_that_one_member_adds_to_a_repeated_round_is_not_the_difference_of_two_sums(
    tmp_path: Path,
) -> None:
    """The coordinator asks one member for its scores only after the first sum is revealed, and then repeats the round."""
    first = new_round(tmp_path, 8, hidden_among=2, scoring=NAMES[:7])
    assert first.run() == {}
    second = new_round(tmp_path, 8, hidden_among=2, terms=REPEATED, scoring=NAMES[:8])
    assert second.run(UPDATE) == {}
    refusals = second.ask(CONFIRM)
    assert {type(error) for error in refusals.values()} == {SumsTooClose}
    assert set(refusals) == set(NAMES[:8])
    again = new_round(tmp_path, 8, hidden_among=2, terms=replace(TERMS, round=9), scoring=NAMES[:7])
    assert again.run() == {}


def test_29_scores_may_be_in_one_of_two_sums_if_they_hide_each_other(tmp_path: Path) -> None:
    me = new_round(tmp_path, 8, hidden_among=2).clients["ann"].me
    everyone = frozenset(NAMES[:8])
    sums = RevealedSums(tmp_path)
    sums.note(me, everyone)
    sums.check(me, everyone, everyone)
    for scores in (NAMES[:1], NAMES[:2]):
        with pytest.raises(SumsTooClose):
            sums.check(me, everyone, scores)
    sums.check(me, everyone, NAMES[:3])


def test_29_each_earlier_sum_counts_also_after_a_restart_and_a_half_written_line_does_not(tmp_path: Path) -> None:
    me = new_round(tmp_path, 8, hidden_among=2).clients["ann"].me
    RevealedSums(tmp_path).note(me, ("ann", "bob", "cleo", "dora"))
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"base":')
    RevealedSums(tmp_path).note(me, ("ann", "emil", "fay", "gus"))
    RevealedSums(tmp_path).note(me, ("ann", "emil", "fay", "gus"))
    assert (tmp_path / FILE).read_bytes().count(b"\n") == 2
    for close in (("ann", "bob", "cleo"), ("ann", "emil", "fay")):
        with pytest.raises(SumsTooClose):
            RevealedSums(tmp_path).check(me, close)
    (tmp_path / FILE).write_bytes(b"{}\n")
    with pytest.raises(InvalidConfig, match="damaged"):
        RevealedSums(tmp_path).check(me, ("ann", "bob"))


@pytest.mark.parametrize("colluders", [0, 1])
def test_29_three_sums_that_are_far_from_each_other_do_not_single_out_a_few_together(
    tmp_path: Path, colluders: int
) -> None:
    """(S - S1) + (S - S2) - (S - S3) is twice the sum of ann and bob, although each two sums differ by four members."""
    me = replace(
        new_round(tmp_path, 8, hidden_among=3 - colluders).clients["ann"].me, colluders=colluders, pins=pins_of(NAMES)
    )
    sums, everybody = RevealedSums(tmp_path), set(NAMES)
    far = ({"ann", "bob", "cleo", "dora"}, {"ann", "bob", "emil", "fay"}, {"cleo", "dora", "emil", "fay"})
    for missing in (set[str](), *far[:2]):
        with contextlib.suppress(SumsTooClose):
            sums.check(me, everybody - missing)
            sums.note(me, everybody - missing)
    with pytest.raises(SumsTooClose) as caught:
        sums.check(me, everybody - far[2])
    assert caught.value.trusted == 2 - colluders
    assert (tmp_path / FILE).read_bytes().count(b"\n") == 2, "the third one is refused already"


def test_29_sums_of_a_growing_federation_may_follow_each_other(tmp_path: Path) -> None:
    names = tuple(f"member-{number}" for number in range(12))
    me = replace(new_round(tmp_path, 5).clients["ann"].me, pins=dict.fromkeys(names, "0" * 64), hidden_among=3)
    sums = RevealedSums(tmp_path)
    for many in (4, 8, 12, 4):
        sums.check(me, names[:many])
        sums.note(me, names[:many])
    with pytest.raises(SumsTooClose):
        sums.check(me, names[1:5])


def test_29_two_rounds_at_the_same_time_reveal_one_of_two_close_sums(tmp_path: Path) -> None:
    """Both sums are confirmed before either is revealed, so that the check must be made again at the reveal."""
    first, second = dropped_in(tmp_path, ()), dropped_in(tmp_path, ("cleo",), SECOND_RUN)
    assert first.ask(CONFIRM) == {}
    assert second.ask(CONFIRM) == {}
    assert first.ask(REVEAL) == {}
    assert {type(error) for error in second.ask(REVEAL).values()} == {SumsTooClose}
    assert second.sent(Reveal) == []
