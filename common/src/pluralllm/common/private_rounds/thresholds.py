"""Arithmetic by which a client decides whether a private round hides its update; it believes its own numbers only.

In all functions `members` is the number of members of the round; `pinned` counts those whose peer keys this client has pinned,
itself included; an unpinned member counts as an adversary. `colluders` is the number of pinned members that this client
believes may collude with the coordinator (policy), `threshold` the number of members that confirm and reveal
(words.private_rounds.threshold, by the run spec's colluders).
"""

from collections.abc import Mapping


def may_deal(*, members: int, pinned: int, threshold: int, colluders: int) -> bool:
    """Returns whether a client may deal shares: no two different sums can both get `threshold` answers.

    An adversary may answer twice, an honest member answers once: 2t > n + (n - p) + c'.
    """
    return members >= 3 and 2 * threshold > members + (members - pinned) + colluders


def pinned_needed(*, members: int, threshold: int, colluders: int) -> int:
    """Returns the least number of pinned members with which a client may deal shares; more than `members` if none is enough."""
    return max(1, 2 * members + colluders - 2 * threshold + 1)


def least_in_sum(*, members: int, pinned: int, colluders: int, hidden_among: int) -> int:
    """Returns the least number of updates in a sum that a client's update may be part of.

    At least `hidden_among` of so many are updates of honest members, the client's own included, whoever else is in the sum.
    The client signs the number in its boxes; no honest member confirms a smaller sum.
    """
    return hidden_among + colluders + (members - pinned)


def is_hidden(*, pinned_in_sum: int, colluders: int, hidden_among: int) -> bool:
    """Returns whether enough pinned members are in a sum, for a client that is to confirm it (itself included)."""
    return pinned_in_sum - colluders >= hidden_among


def is_large_enough(*, updates: int, threshold: int, greatest_least: int) -> bool:
    """Returns whether a sum has enough updates for every member. greatest_least: greatest least_in_sum of the sum's members."""
    return updates >= max(threshold, greatest_least)


def is_far_enough(*, pinned_in_difference: int, colluders: int, hidden_among: int) -> bool:
    """Returns whether a sum may follow another one on the same base version, which this client has revealed.

    pinned_in_difference: pinned members that are in one of the two sums and not in the other one. Two sums of the same members
    are to be allowed before: their difference is no update.
    """
    return pinned_in_difference - colluders >= hidden_among


def is_base_vouched(*, pinned_that_checked: int, colluders: int) -> bool:
    """Returns whether an honest pinned member has computed the base version again, so that the client need not do it."""
    return pinned_that_checked > colluders


def score_demand(*, unpinned: int, colluders: int, hidden_among: int) -> int:
    """Returns the least number of members with scores, in each possible sum, that hides a client's score.

    unpinned: number of members that the client may meet in the round and has not pinned. At least `hidden_among` of the scores
    are then of honest members, the client's own included. The client signs the number with its keys, before it knows the members.
    """
    return hidden_among + colluders + unpinned


def adding_scores(demands: Mapping[str, int], *, threshold: int) -> frozenset[str]:
    """Returns the members that add their scores to the sum: the largest set in which each demand is met, whoever drops out.

    demands: of all members of the round, 0 for a member that adds none. A sum has at least `threshold` updates, and at least as
    many as each of its members demands of them, so that a set that all members are in meets every demand. All members compute the
    same set from what each has signed, so that each can rely on the others.
    """
    members, adding = len(demands), frozenset(name for name, demand in demands.items() if demand)
    while True:
        met = frozenset(name for name in adding if min(members, demands[name] + members - threshold) <= len(adding))
        if met == adding:
            return adding
        adding = met
