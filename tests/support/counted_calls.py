"""Counts the calls that a piece of work makes, to show how its work grows. Calls do not depend on the machine, as seconds do."""

import sys
from collections.abc import Callable
from types import FrameType

GROWTH = 2.2  # most times as many calls for twice as many clients; work that grows with their square makes four times as many


def calls_of(work: Callable[[], object]) -> int:
    """Returns the number of calls that the work makes in this thread. Each step of a generator counts as a call."""
    calls = 0

    def count(_: FrameType, event: str, __: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return calls
