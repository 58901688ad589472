"""A member adds its score to a sum only where enough others that it knows add theirs, whoever drops out."""

from dataclasses import replace
from pathlib import Path

import pytest
from private.evil_coordinator import KEYS, SCORE, SHARES, Coordinator, for_victims, new_round, pins_of
from support.private_members import NAMES

from pluralllm.client.private_rounds.membership import demand_of
from pluralllm.common.errors.private_rounds import BadView, HiddenAmongTooFew
from pluralllm.common.private_rounds.messages import MOST_DEMAND, Shares
from pluralllm.common.private_rounds.ring import SCORED
from pluralllm.common.private_rounds.roster import Roster, RosterChange, RosterEntry
from pluralllm.common.private_rounds.round_view import RoundView

FOUR, FIVE, EIGHT = NAMES[:4], NAMES[:5], NAMES[:8]


def adding(coordinator: Coordinator) -> list[str]:
    """Returns the members that have added their scores. The sum must have as many."""
    names = [name for name, client in coordinator.clients.items() if client.score == SCORE]
    assert coordinator.unmasked()[SCORED] == len(names)
    return names


# One colluder, hidden among 3. Of 5 members, 4 make a sum; of 8, 5.
@pytest.mark.parametrize(
    ("members", "scoring", "added"),
    [(FOUR, 4, 4), (FOUR, 3, 0), (FIVE, 5, 5), (FIVE, 4, 0), (FIVE, 1, 0), (EIGHT, 8, 8), (EIGHT, 7, 7), (EIGHT, 6, 0)],
    ids=str,
)
def test_scores_are_added_if_every_possible_sum_hides_them(
    tmp_path: Path, members: tuple[str, ...], scoring: int, added: int
) -> None:
    coordinator = new_round(tmp_path, size=len(members), scoring=members[:scoring])
    assert coordinator.run() == {}
    assert adding(coordinator) == list(members[:added])


def test_members_that_are_not_known_to_somebody_hide_nobodys_score(tmp_path: Path) -> None:
    pins = dict.fromkeys(FIVE[:4], FIVE[:4])
    some = new_round(tmp_path, pinned=pins, scoring=(*FIVE[:3], "emil"), hidden_among=2)
    assert some.run() == {}
    assert adding(some) == [], "emil knows all four, and the others do not know emil: it would be alone"
    everyone = new_round(tmp_path / "all", pinned=pins, scoring=FIVE, hidden_among=2)
    assert everyone.run() == {}
    assert adding(everyone) == list(FIVE)


def test_a_coordinator_cannot_make_members_look_as_if_they_added_scores(tmp_path: Path) -> None:
    def all_score(view: RoundView) -> RoundView:
        members = (replace(one, keys=replace(one.keys, score_among=4)) for one in view.members)
        return replace(view, members=tuple(members))

    coordinator = new_round(tmp_path, scoring=("ann",))
    coordinator.lie = for_victims(("ann",), SHARES, all_score)
    assert coordinator.ask(KEYS) == {}
    refused = coordinator.ask(SHARES)
    assert {name: type(error) for name, error in refused.items()} == {"ann": BadView}


def test_a_client_leaves_a_round_with_more_strangers_than_its_demand_allows_for(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path, scoring=FIVE, hidden_among=2)
    client = coordinator.clients["ann"]
    assert coordinator.ask(KEYS) == {}
    client.me = replace(client.me, pins=pins_of(FIVE[:4]))  # emil is new
    refused = coordinator.ask(SHARES)
    assert {name: type(error) for name, error in refused.items()} == {"ann": HiddenAmongTooFew}
    assert coordinator.sent(Shares, "ann") == []


def test_the_demand_allows_for_every_member_of_the_roster_that_is_not_pinned() -> None:
    entries = [RosterEntry(at, name, "G", f"{at}" * 64, RosterChange.ADDED) for at, name in enumerate(FIVE, 1)]
    roster, pins = Roster().extended(entries), pins_of(FIVE[:3])
    assert demand_of(roster, "ann", pins, colluders=1, hidden_among=3) == 3 + 1 + 2
    assert demand_of(roster, "emil", pins, colluders=1, hidden_among=3) == 3 + 1 + 1
    assert demand_of(roster, "ann", {}, colluders=MOST_DEMAND, hidden_among=3) == MOST_DEMAND
