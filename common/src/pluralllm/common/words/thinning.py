"""Thins the points of a curve, so that a picture of a long run stays small."""

from collections.abc import Sequence
from typing import TypeVar

Value = TypeVar("Value")


def thinned(values: Sequence[Value], most: int) -> list[Value]:
    """Returns at most `most` of the values, evenly spaced, with the first and the last value among them. most: at least 2."""
    if len(values) <= most:
        return list(values)
    last = len(values) - 1
    return [values[round(point * last / (most - 1))] for point in range(most)]
