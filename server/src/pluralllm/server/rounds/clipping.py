"""Factors that shorten the longest updates of a round, so that one member cannot move the model by an arbitrary distance.

The functions are pure and use no numpy, because the round machine calls them. A limit that is the same for all rounds
(the run spec's `max_delta_norm`) must allow the longest honest update of the whole run. So it allows much longer updates than
the other members send in a late round. The limit here follows the round: MAX_LENGTH times the median of the norms.

The median is the lower one: of an even number of updates, the lower of the two in the middle counts. So the limit follows the
honest updates as long as at most half of the members send longer ones; with two members, the shorter update sets the limit.
An update of zeros moves nothing and does not count in the median. Members that send very short updates lower the limit only if
they are at least half of the round.
"""

import statistics
from collections.abc import Sequence

from pluralllm.server.rounds.events import Receipt

MAX_LENGTH = 3.0  # longest update that keeps its length, in medians of the round
DIGITS = 12  # significant ones of a factor


def clip_scales(receipts: Sequence[Receipt]) -> tuple[float, ...]:
    """Returns one factor for each update, at most 1, in the order of `receipts`; () if no update is longer than the limit.

    The factor times the update's norm is at most MAX_LENGTH times the median norm of the round's updates. The result is () as
    well if a receipt has no norm.
    """
    norms = [receipt.norm for receipt in receipts if receipt.norm is not None]
    moving = [norm for norm in norms if norm > 0]
    if len(norms) < len(receipts) or not moving:
        return ()
    limit = MAX_LENGTH * statistics.median_low(moving)
    scales = tuple(1.0 if norm <= limit else float(f"{limit / norm:.{DIGITS}g}") for norm in norms)
    return scales if any(scale < 1 for scale in scales) else ()
