"""Runs one drill from its start to its verification, keeps the undisturbed ones to compare with, and writes the report."""

import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from drill.fleet import Fault, fleet
from drill.pairs import StorePair
from drill.points import passes_to_kill_at
from drill.scenarios import PRIVATE_SCENARIOS, SCENARIOS, Scenario

ALL = os.environ.get("PLURALLLM_FAULTS") == "all"
SAMPLE_ONLY = "one of each kind is tried here; all: make faults"
REPORT = os.environ.get("PLURALLLM_FAULTS_REPORT")  # a Markdown file that gets a row for each drill
HEAD = "| stores | scenario | killed at | outcome | s |\n|---|---|---|---|---|\n"
UNDISTURBED = Fault()


@dataclass(frozen=True, slots=True)
class Ending:
    """The result of a drill whose state was verified and that left no process behind."""

    digest: str  # the digest of the newest model version
    fired: bool
    passes: Counter[str]
    before: Counter[str]  # the passes before the first message of a private round


def drill(folder: Path, pair: StorePair, scenario: Scenario, fault: Fault, expected_digest: str = "") -> Ending:
    """Plays a scenario under a fault; the newest version must have `expected_digest`, unless that is empty."""
    start_s, outcome = time.monotonic(), "FAILED"
    try:
        with fleet(folder, pair, fault, **scenario.settings) as drilled_fleet:
            digest = scenario.play(drilled_fleet)
            ending = Ending(
                digest, drilled_fleet.fault_fired, drilled_fleet.passes(), drilled_fleet.passes_before_rounds()
            )
        assert expected_digest in ("", digest), f"another model than undisturbed\n{drilled_fleet.logs()}"
        outcome = (
            ("same model" if expected_digest else "undisturbed") if ending.fired or not fault.name else "did not fire"
        )
    finally:
        _report(pair.name, scenario.name, fault.name or "-", outcome, f"{time.monotonic() - start_s:.1f}")
    return ending


def _report(*cells: str) -> None:
    if REPORT:
        path = Path(REPORT)
        with path.open("a") as file:
            if not path.stat().st_size:
                file.write(HEAD)
            file.write(f"| {' | '.join(cells)} |\n")


class Undisturbed:
    """The results of each scenario without a fault; a scenario is played when its result is first needed."""

    def __init__(self, folder: Path, pair: StorePair) -> None:
        self._folder = folder
        self._pair = pair
        self._endings: dict[str, Ending] = {}

    def of(self, scenario: Scenario) -> Ending:
        if scenario.name not in self._endings:
            self._endings[scenario.name] = drill(self._folder / scenario.name, self._pair, scenario, UNDISTURBED)
        return self._endings[scenario.name]

    def reached(self) -> set[str]:
        """Returns every point that any scenario passes."""
        return {point for scenario in SCENARIOS for point in self.of(scenario).passes}

    def passing(self, point: str) -> tuple[Scenario, tuple[int, ...]]:
        """Returns the first scenario that passes a point, and the passes to kill at."""
        for scenario in SCENARIOS:
            if count := self.of(scenario).passes[point]:
                return scenario, passes_to_kill_at(count)
        raise AssertionError(f"no scenario passes {point}")

    def reached_in_rounds(self) -> set[str]:
        """Returns every point that private rounds pass."""
        return {point for scenario in PRIVATE_SCENARIOS for point in self._in_rounds(scenario)}

    def passing_in_rounds(self, point: str) -> tuple[Scenario, tuple[int, ...]] | None:
        """Returns the first scenario whose private rounds pass a point, and the passes to kill at; None if none does."""
        for scenario in PRIVATE_SCENARIOS:
            if count := self._in_rounds(scenario)[point]:
                before = self.of(scenario).before[point]
                return scenario, tuple(before + number for number in passes_to_kill_at(count))
        return None

    def _in_rounds(self, scenario: Scenario) -> Counter[str]:
        ending = self.of(scenario)
        return ending.passes - ending.before
