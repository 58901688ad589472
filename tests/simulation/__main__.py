"""Simulates one run again and prints its faults, its result and everything that does not hold."""

import argparse
import sys
import time

from simulation.faults import HARMLESS, Kind
from simulation.scenario import SCENARIOS
from simulation.simulator import Ticket, problems, simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--scenario", choices=SCENARIOS, default="fedavg", help="The scenario to simulate.")
    parser.add_argument("--rounds", type=int, default=100, help="The number of rounds.")
    parser.add_argument("--seed", type=int, default=0, help="The seed of the faults.")
    parser.add_argument(
        "--kind",
        action="append",
        choices=[kind.name for kind in Kind],
        help="A kind of fault to inject; by default all harmless ones.",
    )
    options = parser.parse_args()
    kinds = tuple(Kind[name] for name in options.kind) if options.kind else HARMLESS
    ticket = Ticket(options.scenario, options.rounds, options.seed, kinds)
    start_s, start_cpu_s = time.monotonic(), time.process_time()
    outcome = simulate(ticket)
    print(*outcome.log, sep="\n")
    print(
        f"{outcome.rounds} rounds, {outcome.versions} versions, {outcome.lives} lives, {outcome.simulated_s:.0f} simulated s"
    )
    print(f"{time.monotonic() - start_s:.2f} s, {time.process_time() - start_cpu_s:.2f} s of a CPU; {outcome.ended}")
    print(f"trace {outcome.trace_sha256}")
    wrong = problems(ticket, outcome)
    print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
