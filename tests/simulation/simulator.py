"""Simulates runs by seed; an error says how to repeat its run."""

import asyncio
import logging
import shutil
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import structlog
from simulation.faults import HARMLESS, Kind
from simulation.process import without_threads
from simulation.scenario import Scenario, scenario
from simulation.virtual_time import SimulatedLoop
from simulation.world import Outcome, World

IN_MEMORY = Path("/dev/shm")
ROUND_LIMIT_S = 1000.0  # simulated time for each round, on average
FIRST_LIMIT_S = 10_000.0
LOG_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Ticket:
    """The values that repeat a run."""

    scenario: str
    rounds: int
    seed: int
    kinds: tuple[Kind, ...] = HARMLESS

    def __str__(self) -> str:
        kinds = "" if self.kinds == HARMLESS else "".join(f" --kind {kind.name}" for kind in self.kinds)
        return (
            f"PYTHONPATH=tests python -m simulation --scenario {self.scenario} --rounds {self.rounds} "
            f"--seed {self.seed}{kinds}"
        )


class SimulationFailed(AssertionError):
    """A property does not hold; the message says how to repeat the run."""


def simulate(ticket: Ticket) -> Outcome:
    """Simulates one run from its creation to its verification. Raises SimulationFailed if it cannot go on."""
    simulated_scenario = scenario(ticket.scenario, ticket.rounds)
    folder = Path(tempfile.mkdtemp(prefix="pluralllm-simulation-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None))
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
            return runner.run(_play(ticket, simulated_scenario, folder))
    finally:
        structlog.configure(**before)
        shutil.rmtree(folder)


async def _play(ticket: Ticket, simulated_scenario: Scenario, folder: Path) -> Outcome:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimulatedLoop)
    world = World(simulated_scenario, ticket.seed, ticket.kinds, loop, folder)
    with without_threads(world.operations):
        try:
            await world.live(FIRST_LIMIT_S + ROUND_LIMIT_S * ticket.rounds)
        except Exception as error:
            raise SimulationFailed(f"{error!r}\n{world.describe()}\nagain: {ticket}") from error
        return await world.outcome()


@lru_cache(maxsize=16)
def undisturbed(name: str, rounds: int) -> Outcome:
    """Simulates the same run without a fault."""
    return simulate(Ticket(name, rounds, 0, ()))


def check(ticket: Ticket) -> Outcome:
    """Simulates one run and checks its properties. Raises SimulationFailed."""
    outcome = simulate(ticket)
    if wrong := problems(ticket, outcome):
        raise SimulationFailed("\n".join((*wrong, *outcome.log[-LOG_SHOWN:], f"again: {ticket}")))
    return outcome


def problems(ticket: Ticket, outcome: Outcome) -> list[str]:
    """Returns the properties that do not hold; nothing if all is well."""
    wrong = [] if outcome.report.is_clean else outcome.report.lines()
    wrong += [*outcome.broken_promises, *outcome.broken_tasks]
    if ticket.kinds and outcome.quiet:
        wrong.append(f"nothing went wrong in rounds {outcome.quiet}")
    if set(ticket.kinds) <= set(HARMLESS):
        same = undisturbed(ticket.scenario, ticket.rounds)
        if outcome.record_sha256 != same.record_sha256:
            wrong.append(f"version {outcome.versions}, {outcome.ended}; undisturbed: {same.versions}, {same.ended}")
    return wrong
