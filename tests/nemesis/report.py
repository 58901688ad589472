"""The summary of many seeds: faults by kind, updates, refusals, and the seeds with problems."""

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from nemesis.replay import IDENTICAL
from nemesis.schedule import Kind
from nemesis.trial import Outcome


@dataclass
class Total:
    """The sums over the seeds so far."""

    seeds: Counter[str] = field(default_factory=Counter)  # by the name of the pair of stores
    fired: Counter[Kind] = field(default_factory=Counter)
    replays: Counter[str] = field(default_factory=Counter)
    updates: int = 0
    refused: int = 0
    abandoned: int = 0
    failed: list[str] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    start_s: float = field(default_factory=time.monotonic)

    def add(self, outcome: Outcome) -> None:
        self.seeds[outcome.schedule.stores] += 1
        self.fired += outcome.fired
        self.replays += outcome.replays
        self.updates += outcome.updates
        self.refused += outcome.refused
        self.abandoned += 0 if outcome.record is None else outcome.record.abandoned
        self.took_s.append(outcome.took_s)
        if outcome.problems:
            self.failed.append(f"seed {outcome.schedule.seed} ({outcome.schedule.stores}): {outcome.problems[0][:300]}")

    def line(self, outcome: Outcome) -> str:
        """Returns the report line of one seed."""
        held = "DOES NOT HOLD" if outcome.problems else "holds"
        faults = f"{outcome.fired.total()} faults, {outcome.updates} updates, {outcome.refused} calls refused"
        seed = f"seed {outcome.schedule.seed} ({outcome.schedule.stores}, {outcome.schedule.scenario})"
        return f"{seed}: {held}, {faults}, {outcome.took_s:.1f} s"

    def lines(self) -> list[str]:
        """Returns the summary in Markdown."""
        seeds = ", ".join(f"{count} over {stores}" for stores, count in sorted(self.seeds.items()))
        took = f"{time.monotonic() - self.start_s:.0f} s in all, {max(self.took_s, default=0):.1f} s at most for one"
        return [
            f"{self.seeds.total()} seeds ({seeds}), {took}: {self.fired.total()} faults, {self.updates} updates committed, "
            f"{self.refused} duplicate or forged calls refused, {self.replays[IDENTICAL]} answered with the identical receipt, "
            f"{self.abandoned} rounds abandoned with a reason, {len(self.failed)} seeds that do not hold.",
            "",
            "| fault | times |",
            "|---|---|",
            *(f"| {kind} | {self.fired[kind]} |" for kind in Kind),
            *(f"| of the replayed calls: {outcome} | {count} |" for outcome, count in sorted(self.replays.items())),
            "",
            *(f"- {problem}" for problem in self.failed),
        ]

    def write(self, path: Path) -> None:
        with path.open("a") as file:
            file.write("\n".join(["", "## Nemesis", "", *self.lines(), ""]))
