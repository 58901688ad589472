"""The log of a process: its JSON lines, read while the process writes them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemesis.schedule import Moment

MOMENTS = {
    "OpenRound": Moment.OPENED,
    "RecordReceipt": Moment.UPDATE,
    "Average": Moment.AVERAGING,
    "Publish": Moment.PUBLISHED,
    "FixMembers": Moment.MEMBERS_FIXED,
    "FixDealers": Moment.DEALERS_FIXED,
    "FixSum": Moment.SUM_FIXED,
}
Facts = dict[str, Any]


class Tail:
    """The new lines of a growing log file; skips a line that a kill cut off, because it is not JSON."""

    def __init__(self, path: Path) -> None:
        self._path, self._at, self._rest = path, 0, b""

    def new(self) -> Iterator[Facts]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._at)
            data = file.read()
        self._at += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"{"):
                try:
                    yield json.loads(line)
                except ValueError:
                    continue


@dataclass
class Progress:
    """The progress of a run according to the coordinators' logs; later lines imply steps that were done but not logged."""

    round: int = 0
    is_over: bool = False
    reached: set[tuple[int, Moment]] = field(default_factory=set)
    event_names: list[str] = field(default_factory=list)  # the names of all events

    def take(self, facts: Facts) -> None:
        """Takes in one line of a coordinator's log."""
        self.event_names.append(str(facts.get("event")))
        match facts.get("event"):
            case "run.recovered":
                self._go_to(facts["round"])
                self.is_over = self.is_over or facts["phase"] == "ended"
            case "run.event":
                effects = facts["effects"]
                self._go_to(self.round + 1 if "OpenRound" in effects else facts.get("round", self.round))
                self.reached |= {(self.round, MOMENTS[name]) for name in effects if name in MOMENTS}
                self.is_over = self.is_over or "EndRun" in effects

    def has_passed(self, round_number: int, moment: Moment) -> bool:
        """Whether this moment of the round has come, or can no longer come."""
        return (round_number, moment) in self.reached or self.round > round_number or self.is_over

    def _go_to(self, number: int) -> None:
        self.round = max(self.round, number)


def facts_in(path: Path) -> list[Facts]:
    """Returns all log lines so far."""
    return list(Tail(path).new())
