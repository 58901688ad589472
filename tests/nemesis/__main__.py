"""Runs one or more seeds under faults and prints what happened and what does not hold."""

import argparse
import contextlib
import os
import sys
from pathlib import Path

from drill.pairs import Embedded, Served
from nemesis.report import Record, Total
from nemesis.schedule import Kind
from nemesis.trial import Trials
from support import real_stores


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m nemesis", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="The first seed.")
    parser.add_argument("--seeds", type=int, default=1, help="The number of seeds to run.")
    parser.add_argument(
        "--stores", choices=(Embedded.name, Served.name), default=Embedded.name, help="The pair of stores to run on."
    )
    parser.add_argument(
        "--kind", action="append", choices=[kind.name for kind in Kind], help="A kind of fault; by default all."
    )
    parser.add_argument("--private", action="store_true", help="Let the runs have private rounds.")
    parser.add_argument("--plan", action="store_true", help="Print the schedules and run nothing.")
    parser.add_argument(
        "--record",
        type=Path,
        help="A file that gets a line for each seed; seeds that it has for this commit are skipped.",
    )
    parser.add_argument("--folder", type=Path, help="A folder that keeps the files of each seed with a problem.")
    options = parser.parse_args()
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    only = [Kind[name] for name in options.kind or ()]
    with contextlib.ExitStack() as stack:
        if options.stores == Embedded.name or options.plan:
            trials = Trials(Embedded(), options.folder, only, private=options.private)
        else:
            served = Served(stack.enter_context(real_stores.postgres()), stack.enter_context(real_stores.s3()))
            os.environ.update(served.environment)
            trials = Trials(served, options.folder, only, private=options.private)
        for kind, reason in trials.unavailable.items():
            print(f"left out: {kind} ({reason})")
        total, record = Total(), Record(options.record, options.stores, private=options.private)
        for seed in range(options.seed, options.seed + options.seeds):
            if record.has(seed):
                continue
            if options.plan:
                print(*trials.schedule(seed).lines(), trials.schedule(seed).sha256, sep="\n")
                continue
            outcome = trials.run(seed)
            total.add(outcome)
            record.add(outcome)
            details = [outcome.report()] if outcome.problems else outcome.log if options.seeds == 1 else []
            print(*details, total.line(outcome), sep="\n", flush=True)
        print(*total.lines(), sep="\n")
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
