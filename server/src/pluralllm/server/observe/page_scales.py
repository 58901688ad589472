"""The axes of the page's charts: limits and ticks at round numbers. The module is pure: it does no input or output."""

import math
from collections.abc import Iterable
from typing import Any

STEPS = 4  # an axis has about this many steps between ticks
NICE = (1.0, 2.0, 5.0, 10.0)  # a step is one of these, times a power of ten
LEAST_SPAN = 0.02  # an axis of scores shows at least this much, so that noise does not look like a change
NEARLY = 1e-9  # of a step: what rounding moves a number by


def scale_of(values: Iterable[float | None], *, most: float = math.inf, whole: bool = False) -> dict[str, Any] | None:
    """Returns an axis that shows all values; None if there is no value.

    The result has the limits `low` and `high`, the numbers at the `ticks`, and the `digits` after the point in their texts.
    most: the largest possible value, which the axis never passes. whole: whether values are whole numbers, such as rounds;
    the limits of such an axis are its first and its last value.
    """
    measured = [value for value in values if value is not None]
    if not measured:
        return None
    first, last = min(measured), max(measured)
    return _whole(int(first), int(last)) if whole else _measured(first, last, most)


def _measured(first: float, last: float, most: float) -> dict[str, Any]:
    if last - first < LEAST_SPAN:
        last = min((first + last + LEAST_SPAN) / 2, most)
        first = min(first, last - LEAST_SPAN)
    step = _nice((last - first) / STEPS)
    begin, end = math.floor(first / step + NEARLY), math.ceil(min(last, most) / step - NEARLY)
    digits = max(0, -math.floor(math.log10(step) + NEARLY))
    ticks = [round(number * step, digits) for number in range(begin, end + 1)]
    return {"low": ticks[0], "high": ticks[-1], "ticks": ticks, "digits": digits}


def _whole(first: int, last: int) -> dict[str, Any]:
    step = max(1, round(_nice(max(last - first, 1) / STEPS)))
    between = range(math.ceil((first + step / 2) / step) * step, math.floor(last - step / 2) + 1, step)
    ticks = sorted({first, *between, last})
    return {"low": first, "high": max(last, first + 1), "ticks": ticks, "digits": 0}


def _nice(step: float) -> float:
    """Returns the smallest round number that is not below `step`: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(nice * power for nice in NICE if nice * power >= step * (1 - NEARLY))
