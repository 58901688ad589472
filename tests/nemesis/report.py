"""What many seeds come to: faults by kind, updates, refusals, and the seeds that do not hold."""

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from nemesis.replay import IDENTICAL
from nemesis.schedule import Kind
from nemesis.trial import Outcome


@dataclass
class Total:
    """Of the seeds so far."""

    seeds: Counter[str] = field(default_factory=Counter)  # by pair of stores
    fired: Counter[Kind] = field(default_factory=Counter)
    replays: Counter[str] = field(default_factory=Counter)
    updates: int = 0
    refused: int = 0
    abandoned: int = 0
    failed: list[str] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    start_s: float = field(default_factory=time.monotonic)

    def add(self, found: Outcome) -> None:
        self.seeds[found.schedule.stores] += 1
        self.fired += found.fired
        self.replays += found.replays
        self.updates += found.updates
        self.refused += found.refused
        self.abandoned += 0 if found.record is None else found.record.abandoned
        self.took_s.append(found.took_s)
        if found.problems:
            self.failed.append(f"seed {found.schedule.seed} ({found.schedule.stores}): {found.problems[0][:300]}")

    def line(self, found: Outcome) -> str:
        """About one of them."""
        held = "DOES NOT HOLD" if found.problems else "holds"
        faults = f"{found.fired.total()} faults, {found.updates} updates, {found.refused} calls refused"
        seed = f"seed {found.schedule.seed} ({found.schedule.stores}, {found.schedule.scenario})"
        return f"{seed}: {held}, {faults}, {found.took_s:.1f} s"

    def lines(self) -> list[str]:
        """Markdown."""
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
