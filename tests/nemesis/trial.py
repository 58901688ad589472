"""A seed from start to verdict, and what an undisturbed run gives."""

import contextlib
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from drill.pairs import Embedded, StorePair
from nemesis import disk
from nemesis.federation import SPECS, Federation, federation
from nemesis.schedule import OF_SPOILT_FILES, Kind, Schedule, kinds_for, schedule
from nemesis.strikes import Nemesis
from nemesis.verdict import Record, problems, read_record
from support.process_harness import LOOK_EVERY_S

RUN_LIMIT_S = 120.0  # while there are faults
HEALED_LIMIT_S = 40.0  # to the run's end, after the last of them
STOPPED_IN_ORDER = 0


@dataclass
class Outcome:
    """Of one seed."""

    schedule: Schedule
    took_s: float
    fired: Counter[Kind]
    replays: Counter[str]
    refused: int  # duplicates and forgeries
    record: Record | None
    problems: list[str]
    log: list[str] = field(default_factory=list)
    logs: str = ""  # of the processes, if there is a problem

    @property
    def updates(self) -> int:
        return 0 if self.record is None else self.record.updates

    @property
    def again(self) -> str:
        """How to see it again."""
        return f"PYTHONPATH=tests python -m nemesis --seed {self.schedule.seed} --stores {self.schedule.stores}"

    def report(self) -> str:
        """For a person who has to find out."""
        parts = [
            f"seed {self.schedule.seed} ({self.schedule.stores}) does not hold; again: {self.again}",
            *(f"  does not hold: {problem}" for problem in self.problems),
            "schedule:",
            *(f"  {line}" for line in self.schedule.lines()),
            "what happened:",
            *(f"  {line}" for line in self.log),
            self.logs,
        ]
        return "\n".join(parts)


class Trials:
    """Of one pair of stores; the undisturbed runs are made when somebody asks, over SQLite and files: the bits are the same."""

    def __init__(self, pair: StorePair, folder: Path | None = None, only: Sequence[Kind] = ()) -> None:
        self._pair = pair
        self._folder = folder
        self._undisturbed: dict[str, Record] = {}
        self.unavailable = disk.unavailable()
        self._kinds = [kind for kind in kinds_for(pair.name, self.unavailable) if not only or kind in only]

    def schedule(self, seed: int) -> Schedule:
        return schedule(seed, self._pair.name, self._kinds)

    def undisturbed(self, scenario: str) -> Record:
        if scenario not in self._undisturbed:
            nothing = Schedule(0, Embedded.name, scenario, standby=False, strikes=())
            found = self._play(nothing, Embedded(), None)
            assert found.record is not None, found.report()
            assert not found.problems, found.report()
            self._undisturbed[scenario] = found.record
        return self._undisturbed[scenario]

    def run(self, seed: int) -> Outcome:
        """Everything of one seed. What does not hold is in the outcome."""
        wanted = self.schedule(seed)
        return self._play(wanted, self._pair, self.undisturbed(wanted.scenario))

    def _play(self, wanted: Schedule, pair: StorePair, undisturbed: Record | None) -> Outcome:
        start_s = time.monotonic()
        base = Path(tempfile.mkdtemp(prefix=f"nemesis-{wanted.seed}-", dir=self._folder))
        found = Outcome(wanted, 0.0, Counter(), Counter(), 0, None, [])
        try:
            with contextlib.ExitStack() as stack:
                running = stack.enter_context(
                    federation(base / "federation", pair, wanted.scenario, standby=wanted.standby)
                )
                if wanted.has(Kind.DISK_FULL):
                    stack.enter_context(disk.small_disk(running.state))
                stack.callback(running.end_all)  # before the disk goes
                _run(running, wanted, undisturbed, found)
        except Exception as error:  # noqa: BLE001 - of two hundred seeds each must tell what it met
            found.problems.append(f"{type(error).__name__}: {error}")
        finally:
            if found.problems:
                found.logs = "\n".join(
                    f"--- {log.name}\n{log.read_text()[-4000:]}" for log in sorted(base.glob("*/*.log"))
                )
            if not found.problems or self._folder is None:
                shutil.rmtree(base, ignore_errors=True)
        found.took_s = time.monotonic() - start_s
        return found


def _run(running: Federation, wanted: Schedule, undisturbed: Record | None, found: Outcome) -> None:
    nemesis = Nemesis(running, wanted)
    found.log, found.fired, found.replays = nemesis.log, nemesis.fired, nemesis.replays.outcomes
    try:
        running.begin()
        _until_over(running, nemesis, found)
    finally:
        nemesis.heal()
    codes = running.stop_coordinators()
    if any(code != STOPPED_IN_ORDER for code in codes):
        found.problems.append(f"stopped in order at the end, the coordinators ended with {codes}")
    nemesis.restore_updates()
    found.refused = nemesis.replays.refused
    found.record = read_record(running.audit_config)
    may_differ = SPECS[wanted.scenario].round.min_clients < len(running.clients) or bool(
        sum(nemesis.fired[kind] for kind in OF_SPOILT_FILES)
    )
    may_end_early = nemesis.fired[Kind.MODEL_SPOILT] > 0
    found.problems += [*nemesis.problems, *nemesis.replays.problems]
    found.problems += problems(running, found.record, undisturbed, may_differ=may_differ, may_end_early=may_end_early)


def _until_over(running: Federation, nemesis: Nemesis, found: Outcome) -> None:
    """The run goes to its end: with the faults, and if need be after them."""
    end_s, healed = time.monotonic() + RUN_LIMIT_S, False
    while not running.is_over:
        now_s = time.monotonic()
        if not healed and (now_s > end_s or nemesis.is_done or running.progress.is_over):
            nemesis.heal()
            running.links.heal()
            nemesis.log.append("all faults are over")
            healed, end_s = True, now_s + HEALED_LIMIT_S
        if healed and now_s > end_s:
            at = f"round {running.progress.round}, run over: {running.progress.is_over}"
            waiting = [name for name, client in running.clients.items() if not running.has_heard_the_end(client)]
            raise AssertionError(f"it goes no further: {at}, not told that it is: {waiting}")
        running.look()
        nemesis.look()
        time.sleep(LOOK_EVERY_S)
