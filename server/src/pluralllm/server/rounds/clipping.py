"""Factors that shorten the longest updates of a round, so that one member cannot move the model by an arbitrary distance.

The functions are pure and use no numpy, because the round machine calls them. A limit that is the same for all rounds
(the run spec's `max_delta_norm`) must allow the longest honest update of the whole run. So it allows much longer updates than
the other members send in a late round. The limit here follows the round: MAX_LENGTH times the median of the norms.

A member moves the model by its share times the length of its update. So the limit falls as the share rises above an even share
(1 / number of updates): a member with three even shares may send an update as long as the median. Whatever a member states and
sends, it moves the model at most MAX_LENGTH times as far as a member with an even share and an update of the median's length.

The median is the lower one: of an even number of updates, the lower of the two in the middle counts. So the limit follows the
honest updates as long as at most half of the members send longer ones; with two members, the shorter update sets the limit.
The rule median_norm_clip of a run spec shortens every update to the median itself, whatever its share; an update of the
median's length keeps its length up to a share of MAX_LENGTH even ones. Sources: Nguyen et al. 2022 (FLAME, arXiv 2101.02281),
whose clipping bound of a round is the median of the norms, here without the clusters and the noise of that paper; Sun et al.
2019 (arXiv 1911.07963) for clipping of norms as a defence.

An update of zeros moves nothing and does not count in the median. Members that send very short updates lower the limit only if
they are at least half of the round.
"""

import math
import statistics
from collections.abc import Sequence

from pluralllm.server.rounds.events import Receipt

MAX_LENGTH = 3.0  # longest update that keeps its length at an even share or less, in medians of the round
DIGITS = 12  # significant ones of a factor
SHARE_DIGITS = 9  # of a number of even shares: recorded weights are rounded, and their sum is not exactly 1


def clip_scales(receipts: Sequence[Receipt], shares: Sequence[float], *, at_median: bool = False) -> tuple[float, ...]:
    """Returns one factor for each update, at most 1, in the order of `receipts`; () if no update is longer than its limit.

    The factor times the update's norm is at most MAX_LENGTH times the median norm of the round's updates, divided by the
    client's number of even shares if that is more than one. The result is () as well if a receipt has no norm.
    shares: each client's share of the mean, in the order of `receipts`; the sum is 1. at_median: whether the limit is at most the
    median norm itself.
    """
    norms = [receipt.norm for receipt in receipts if receipt.norm is not None]
    moving = [norm for norm in norms if norm > 0]
    if len(norms) < len(receipts) or not moving:
        return ()
    median = statistics.median_low(moving)
    longest, top = MAX_LENGTH * median, median if at_median else math.inf
    limits = [min(top, longest / max(1.0, round(len(norms) * share, SHARE_DIGITS))) for share in shares]
    scales = tuple(
        1.0 if norm <= limit else float(f"{limit / norm:.{DIGITS}g}") for norm, limit in zip(norms, limits, strict=True)
    )
    return scales if any(scale < 1 for scale in scales) else ()
