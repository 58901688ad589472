"""Simulates one run again: what happened, and what does not hold."""

import argparse
import sys
import time

from simulation.faults import HARMLESS, Kind
from simulation.scenario import SCENARIOS
from simulation.simulator import Ticket, problems, simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--scenario", choices=SCENARIOS, default="fedavg")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--kind", action="append", choices=[kind.name for kind in Kind], help="default: all harmless ones"
    )
    given = parser.parse_args()
    kinds = tuple(Kind[name] for name in given.kind) if given.kind else HARMLESS
    ticket = Ticket(given.scenario, given.rounds, given.seed, kinds)
    start_s, start_cpu_s = time.monotonic(), time.process_time()
    found = simulate(ticket)
    print(*found.log, sep="\n")
    print(f"{found.rounds} rounds, {found.versions} versions, {found.lives} lives, {found.simulated_s:.0f} simulated s")
    print(f"{time.monotonic() - start_s:.2f} s, {time.process_time() - start_cpu_s:.2f} s of a CPU; {found.ended}")
    print(f"trace {found.trace_sha256}")
    wrong = problems(ticket, found)
    print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
