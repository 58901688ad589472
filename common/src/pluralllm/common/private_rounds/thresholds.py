"""Arithmetic by which a client decides whether a private round hides its update; it believes its own numbers only.

In all functions `members` is the number of members of the round; `pinned` counts those whose peer keys this client has pinned,
itself included; an unpinned member counts as an adversary. `colluders` is the number of pinned members that this client
believes may collude with the coordinator (policy), `threshold` the number of members that confirm and reveal
(words.private_rounds.threshold, by the run spec's colluders).
"""


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
