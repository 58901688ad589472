"""Who must be there before a client deals or confirms, as the tables of the design say."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pluralllm.common.private_rounds import thresholds
from pluralllm.common.private_rounds.thresholds import adding_scores
from pluralllm.common.words.private_rounds import threshold


def test_a_client_deals_only_if_two_sums_cannot_both_be_answered() -> None:
    for members, colluders, own_colluders in itertools.product(range(3, 12), range(3), range(3)):
        needed = threshold(members, colluders)
        for pinned in range(1, members + 1):
            honest = max(pinned - own_colluders, 0)
            adversaries = members - honest
            # Adversaries answer for both sums; the honest members are split between the two.
            both = any(
                first + adversaries >= needed and honest - first + adversaries >= needed for first in range(honest + 1)
            )
            allowed = thresholds.may_deal(members=members, pinned=pinned, threshold=needed, colluders=own_colluders)
            assert allowed != both or pinned < own_colluders
            assert allowed == (
                pinned >= thresholds.pinned_needed(members=members, threshold=needed, colluders=own_colluders)
            )


def test_the_edge_of_the_first_rule_and_two_members_never() -> None:
    rule = thresholds.may_deal
    assert rule(members=8, pinned=8, threshold=5, colluders=1)
    assert not rule(members=8, pinned=8, threshold=5, colluders=2)
    assert rule(members=10, pinned=10, threshold=7, colluders=3)
    assert not rule(members=10, pinned=6, threshold=7, colluders=1)
    assert not rule(members=2, pinned=2, threshold=2, colluders=0)


def test_a_partner_of_four_is_hidden_without_a_drop_and_of_five_with_one() -> None:
    assert thresholds.is_hidden(pinned_in_sum=4, colluders=1, hidden_among=3)
    assert not thresholds.is_hidden(pinned_in_sum=3, colluders=1, hidden_among=3)
    assert thresholds.is_hidden(pinned_in_sum=3, colluders=1, hidden_among=2)


def test_the_least_of_a_sum_counts_everybody_who_is_not_trusted() -> None:
    assert thresholds.least_in_sum(members=8, pinned=6, colluders=1, hidden_among=3) == 6
    for updates, greatest, allowed in ((6, 6, True), (5, 6, False), (5, 5, True), (4, 3, False)):
        assert thresholds.is_large_enough(updates=updates, threshold=5, greatest_least=greatest) is allowed


def test_two_sums_on_one_base_differ_by_enough_and_a_base_is_vouched_for_by_an_honest_member() -> None:
    assert thresholds.is_far_enough(pinned_in_difference=4, colluders=1, hidden_among=3)
    assert not thresholds.is_far_enough(pinned_in_difference=3, colluders=1, hidden_among=3)
    assert thresholds.is_base_vouched(pinned_that_checked=2, colluders=1)
    assert not thresholds.is_base_vouched(pinned_that_checked=1, colluders=1)


def test_three_partners_alone_need_all_three_or_believe_that_nobody_colludes() -> None:
    for colluders, needed, hidden_among in ((1, 3, 2), (0, 2, 3)):
        assert threshold(3, colluders) == needed
        assert thresholds.may_deal(members=3, pinned=3, threshold=needed, colluders=colluders)
        least = thresholds.least_in_sum(members=3, pinned=3, colluders=colluders, hidden_among=hidden_among)
        assert least == 3
        assert thresholds.is_hidden(pinned_in_sum=3, colluders=colluders, hidden_among=hidden_among)
        assert not thresholds.is_hidden(pinned_in_sum=2, colluders=colluders, hidden_among=hidden_among)
    assert not thresholds.may_deal(members=3, pinned=2, threshold=3, colluders=2)
    assert not thresholds.is_hidden(pinned_in_sum=3, colluders=1, hidden_among=3)  # the default


@given(data=st.data())
def test_a_member_that_adds_its_score_has_its_demand_met_in_every_possible_sum(data: st.DataObject) -> None:
    members = data.draw(st.integers(3, 9))
    colluders = data.draw(st.integers(0, (members - 1) // 2))
    needed = threshold(members, colluders)
    names = [f"m{number}" for number in range(members)]
    demands = {name: data.draw(st.integers(0, members)) for name in names}
    adding = adding_scores(demands, threshold=needed)
    assert adding <= {name for name, demand in demands.items() if demand}
    for name in adding:
        least = max(
            needed, demands[name]
        )  # a sum has at least as many updates, because each member demands so many, too
        outside = members - least  # in the worst case, all of them would have added their scores
        assert len(adding) - outside >= demands[name]
    if all(demands.values()):
        assert adding == frozenset(names)


def test_one_member_that_leaves_its_score_out_takes_others_with_it() -> None:
    demands = {"ann": 2, "ben": 3, "cat": 3, "dan": 0, "eve": 4}
    assert adding_scores(demands, threshold=5) == {"ann", "ben", "cat", "eve"}
    assert adding_scores({**demands, "eve": 5}, threshold=5) == {"ann", "ben", "cat"}
    assert adding_scores({**demands, "eve": 5, "cat": 0}, threshold=5) == frozenset()
