"""Runs a seed from its start to its verdict, and the undisturbed runs to compare with."""

import contextlib
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from drill.pairs import Embedded, StorePair
from drill.private_sums import revealed_twice, wrong_sums
from nemesis import disk
from nemesis.federation import SPECS, Federation, federation
from nemesis.schedule import OF_SPOILT_FILES, Kind, Schedule, kinds_for, schedule
from nemesis.standstill import Standstill
from nemesis.strikes import Nemesis
from nemesis.verdict import Record, problems, read_record
from support.process_harness import LOOK_EVERY_S

RUN_LIMIT_S = 120.0  # the limit while faults strike
HEALED_LIMIT_S = 40.0  # the limit from the last fault to the run's end
UNDISTURBED_LIMIT_S = 300.0  # an idle machine needs some ten seconds
PRIVATE_HEALED_LIMIT_S = 90.0  # a private round has five steps, and each member computes each version again
STOPPED_IN_ORDER = 0


@dataclass
class Outcome:
    """The outcome of one seed."""

    schedule: Schedule
    took_s: float
    fired: Counter[Kind]
    replays: Counter[str]
    refused: int  # replayed and forged calls
    record: Record | None
    problems: list[str]
    log: list[str] = field(default_factory=list)
    logs: str = ""  # the ends of the processes' logs, if there is a problem

    @property
    def updates(self) -> int:
        return 0 if self.record is None else self.record.updates

    @property
    def again(self) -> str:
        """The command that repeats the seed."""
        private = " --private" if self.schedule.is_private else ""
        return (
            f"PYTHONPATH=tests python -m nemesis --seed {self.schedule.seed} --stores {self.schedule.stores}{private}"
        )

    def report(self) -> str:
        """Returns a report for a person who looks for the cause."""
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
    """The trials on one pair of stores. Undisturbed runs are made on demand, over SQLite and files; the bits are the same."""

    def __init__(
        self, pair: StorePair, folder: Path | None = None, only: Sequence[Kind] = (), *, private: bool = False
    ) -> None:
        """Stores the arguments. private: whether the runs have private rounds."""
        self._pair, self._private = pair, private
        self._folder = folder
        self._undisturbed: dict[str, Record] = {}
        self.unavailable = disk.unavailable()
        self._kinds = [kind for kind in kinds_for(pair.name, self.unavailable) if not only or kind in only]

    def schedule(self, seed: int) -> Schedule:
        return schedule(seed, self._pair.name, self._kinds, private=self._private)

    def undisturbed(self, scenario: str) -> Record:
        if scenario not in self._undisturbed:
            nothing = Schedule(0, Embedded.name, scenario, standby=False, strikes=())
            outcome = self._play(nothing, Embedded(), None)
            assert outcome.record is not None, outcome.report()
            assert not outcome.problems, outcome.report()
            assert "quorum" in scenario or not outcome.record.abandoned, f"the machine is too slow\n{outcome.report()}"
            self._undisturbed[scenario] = outcome.record
        return self._undisturbed[scenario]

    def run(self, seed: int) -> Outcome:
        """Runs one seed. The outcome lists everything that does not hold."""
        wanted = self.schedule(seed)
        return self._play(wanted, self._pair, self.undisturbed(wanted.scenario))

    def _play(self, plan: Schedule, pair: StorePair, undisturbed: Record | None) -> Outcome:
        start_s = time.monotonic()
        base = Path(tempfile.mkdtemp(prefix=f"nemesis-{plan.seed}-", dir=self._folder))
        outcome = Outcome(plan, 0.0, Counter(), Counter(), 0, None, [])
        try:
            with contextlib.ExitStack() as stack:
                running = stack.enter_context(
                    federation(base / "federation", pair, plan.scenario, standby=plan.standby)
                )
                if plan.has(Kind.DISK_FULL):
                    stack.enter_context(disk.small_disk(running.state))
                stack.callback(running.end_all)  # before the disk is unmounted
                _run(running, plan, undisturbed, outcome)
        except Exception as error:  # noqa: BLE001 - the outcome of each of many seeds records its own error
            outcome.problems.append(f"{type(error).__name__}: {error}")
        finally:
            if outcome.problems:
                outcome.logs = "\n".join(
                    f"--- {log.name}\n{log.read_text()[-4000:]}" for log in sorted(base.glob("*/*.log"))
                )
            if not outcome.problems or self._folder is None:
                shutil.rmtree(base, ignore_errors=True)
        outcome.took_s = time.monotonic() - start_s
        return outcome


def _run(running: Federation, plan: Schedule, undisturbed: Record | None, outcome: Outcome) -> None:
    nemesis = Nemesis(running, plan)
    outcome.log, outcome.fired, outcome.replays = nemesis.log, nemesis.fired, nemesis.replays.outcomes
    try:
        running.begin()
        healed_limit_s = PRIVATE_HEALED_LIMIT_S if plan.is_private else HEALED_LIMIT_S
        _until_over(running, nemesis, outcome, healed_limit_s if plan.strikes else UNDISTURBED_LIMIT_S)
    finally:
        nemesis.heal()
    codes = running.stop_coordinators()
    if any(code != STOPPED_IN_ORDER for code in codes):
        outcome.problems.append(f"stopped in order at the end, the coordinators ended with {codes}")
    nemesis.restore_updates()
    outcome.refused = nemesis.replays.refused
    outcome.record = read_record(running.verify_config)
    may_differ = SPECS[plan.scenario].round.min_clients < len(running.clients) or bool(
        sum(nemesis.fired[kind] for kind in OF_SPOILT_FILES)
        or (plan.is_private and outcome.record.abandoned)  # with its reason, which the verdict asks for
    )
    may_end_early = nemesis.fired[Kind.MODEL_SPOILT] > 0
    outcome.problems += [*nemesis.problems, *nemesis.replays.problems]
    outcome.problems += problems(
        running, outcome.record, undisturbed, may_differ=may_differ, may_end_early=may_end_early
    )
    if plan.is_private:
        homes = [running.folder / name for name in running.clients]
        outcome.problems += [*wrong_sums(running.verify_config, running.folder), *revealed_twice(homes)]


def _until_over(running: Federation, nemesis: Nemesis, outcome: Outcome, healed_limit_s: float) -> None:
    """Waits until the run ends, with the faults and, if necessary, after them: for at most `healed_limit_s`."""
    end_s, healed = time.monotonic() + RUN_LIMIT_S, False
    standstill = Standstill(time.monotonic(), outcome.problems)
    while not running.is_over:
        now_s = time.monotonic()
        progress, is_down = running.progress, not running.serving.running
        step = (progress.round, len(progress.reached), progress.is_over, is_down)
        standstill.look(now_s, step=step, is_struck=nemesis.is_striking, signs_s=running.signs_s())
        if not healed and (now_s > end_s or nemesis.is_done or running.progress.is_over):
            nemesis.heal()
            running.links.heal()
            nemesis.log.append("all faults are over")
            healed, end_s = True, now_s + healed_limit_s
        if healed and now_s > end_s:
            if running.is_over:  # the last client has just heard of it
                return
            at = f"round {running.progress.round}, run over: {running.progress.is_over}"
            waiting = [name for name, client in running.clients.items() if not running.knows_the_end(client)]
            raise AssertionError(f"it goes no further: {at}, not told that it is: {waiting}")
        running.look()
        nemesis.look()
        time.sleep(LOOK_EVERY_S)
