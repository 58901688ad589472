"""The texts about scores of which only the sum is known: their mean, and how many lie in each bin of width 1/32.

A bin is named by its lower bound, as in 0.75. Nobody learns which group a score is of.
"""

from collections.abc import Sequence


def bins_text(histogram: Sequence[int]) -> str:
    """Returns the histogram as text, for example "1 in 0.69-0.72, 3 in 0.72-0.75". Empty bins are left out."""
    return ", ".join(
        f"{count} in {bin_text(number, len(histogram))}" for number, count in enumerate(histogram) if count
    )


def worst_bin(histogram: Sequence[int]) -> int | None:
    """Returns the number of the lowest bin with a score in it; None if there is no score."""
    return next((number for number, count in enumerate(histogram) if count), None)


def bin_text(number: int, bins: int) -> str:
    """Returns the bounds of one of `bins` equal bins from 0 to 1, for example "0.69-0.72"."""
    return f"{number / bins:.2f}-{(number + 1) / bins:.2f}"


def scores_text(version: int, scored: int, members: int, mean: float, histogram: Sequence[int]) -> str:
    """Returns one sentence about the scores of a model version that have come in a sum.

    scored: number of members whose scores are in the sum. members: number of members of the sum.
    """
    worst = worst_bin(histogram)
    lowest = "" if worst is None else f", worst {bin_text(worst, len(histogram))}"
    return (
        f"scores of version {version} inside a sum: mean alignment {mean:.4f} over {scored} of {members} members{lowest}; "
        f"{bins_text(histogram)}"
    )


def clipped_text(round_number: int, clipped: int, updates: int) -> str:
    """Returns one sentence about how many updates of a private round were longer than the run spec's clip_norm."""
    return f"round {round_number}: {clipped} of {updates} updates were scaled down to the largest norm"
