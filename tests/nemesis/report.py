"""The summary of many seeds: faults by kind, updates, refusals, and the seeds with problems."""

import json
import re
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from nemesis.replay import IDENTICAL
from nemesis.schedule import Kind
from nemesis.trial import Outcome

# The folders of a path, whose file's name is left: the record is read on other machines.
FOLDERS = re.compile(r"(?:/[\w.@+-]+)+/(?=[\w.@+-])")


class Record:
    """A file of verdicts with a JSON object in each line, so that a run over many seeds can be continued."""

    def __init__(self, path: Path | None, stores: str, *, private: bool = False) -> None:
        """Reads the file, if there is one. private: whether the seeds of this process have private rounds."""
        self._path, self._stores, self._rounds = path, stores, "private" if private else "plain"
        self._commit = _commit() if path is not None else ""
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        rows = [json.loads(line) for line in lines]
        own = (self._commit, stores, self._rounds)
        self._seeds = {row["seed"] for row in rows if (row["commit"], row["stores"], row.get("rounds", "plain")) == own}

    def has(self, seed: int) -> bool:
        """Returns whether the file has a verdict on this seed, for the commit of this checkout."""
        return seed in self._seeds

    def add(self, outcome: Outcome) -> None:
        if self._path is None:
            return
        row = {
            "commit": self._commit,
            "stores": self._stores,
            "rounds": self._rounds,
            "seed": outcome.schedule.seed,
            "verdict": "does not hold" if outcome.problems else "holds",
            "problems": [FOLDERS.sub("", problem)[:300] for problem in outcome.problems],
            "faults": {str(kind): count for kind, count in outcome.fired.items()},
            "took_s": round(outcome.took_s, 1),
        }
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12", "--dirty"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


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
            plan = outcome.schedule
            self.failed.append(f"seed {plan.seed} ({plan.stores}, {plan.scenario}): {outcome.problems[0][:300]}")

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
