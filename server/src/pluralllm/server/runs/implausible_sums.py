"""Remembers whose updates were in the last implausible sum of each run.

A sum names nobody, and in a private round nobody can look at a single update. Members that are in one implausible sum after the
other are the ones to ask, and to leave out of a run one after the other.
"""

from collections.abc import Iterable

from pluralllm.common.words.ids import ClientId, RunId


class ImplausibleSums:
    """The members of the last implausible sum of each run, until a sum of the run is good. A restart forgets them."""

    def __init__(self) -> None:
        self._members: dict[RunId, frozenset[ClientId]] = {}

    def note(self, run: RunId, members: Iterable[ClientId]) -> tuple[ClientId, ...]:
        """Notes an implausible sum, and returns the members that were in the run's sum before as well, sorted.

        Returns none if the sum before was good.
        """
        members = frozenset(members)
        again = self._members.get(run, frozenset()) & members
        self._members[run] = members
        return tuple(sorted(again))

    def forget(self, run: RunId) -> None:
        """Ends the row of implausible sums of a run."""
        self._members.pop(run, None)
