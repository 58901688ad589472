"""Counts the calls that a piece of work makes, to show how its work grows. Calls do not depend on the machine, as seconds do."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

GROWTH = 2.2  # most times as many calls for twice as many clients; work that grows with their square makes four times as many


@dataclass(slots=True)
class Counted:
    calls: int = 0


@contextmanager
def counted_calls() -> Iterator[Counted]:
    """Counts the calls in this thread within the block. Each step of a generator counts as a call."""
    counted = Counted()

    def count(_: FrameType, event: str, __: object) -> None:
        counted.calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield counted
    finally:
        sys.setprofile(before)


def calls_of(work: Callable[[], object]) -> int:
    """Returns the number of calls that the work makes."""
    with counted_calls() as counted:
        work()
    return counted.calls
